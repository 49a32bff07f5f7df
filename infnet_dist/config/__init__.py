"""Sections of a run file: keys, defaults, limits and messages."""
