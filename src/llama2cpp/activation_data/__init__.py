"""Activations of many texts: written to folders, read from them, and summed up."""
