"""Measures what lookups, updates and exchanges cost on the workers at hand, for the planner."""
