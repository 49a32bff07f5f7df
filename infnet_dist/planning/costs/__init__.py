"""Sharding options of a table, and what each costs in time and bytes."""
