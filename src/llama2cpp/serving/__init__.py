"""Many requests on one model: passes that they share, the engine whose thread runs them, prefixes that are kept."""
