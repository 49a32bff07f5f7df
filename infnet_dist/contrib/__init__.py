"""Adapters for single sources, with their tests; imported by name, only when a run asks for one."""
