"""A model pack: what was trained, on what, how it must be fed, and digests of every file."""
