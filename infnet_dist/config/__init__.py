"""The sections of a run file, their defaults, limits and messages."""
