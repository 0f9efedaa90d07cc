"""Talking with a model: messages, the templates that make text of them, and what a conversation keeps."""
