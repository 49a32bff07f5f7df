"""Chooses a sharding option per table and places its shards, on arrays without table names."""
