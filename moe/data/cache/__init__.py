"""Token caches on disk: their format, how they are read, and how they are made."""
