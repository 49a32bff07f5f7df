"""Chooses a sharding option per table and places its shards; pure arrays, no table names."""
