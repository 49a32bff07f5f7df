"""Reads log files: which files, which rows, their types, checks and side tables."""
