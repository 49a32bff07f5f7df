"""Deltas: the rows that changed since a base, so that base + deltas = the full checkpoint.

`live` writes them while a run trains, `comparing` from two checkpoints; `applying` makes a
checkpoint of a base and its deltas, `compacting` one delta of several. docs/publish.md.
"""
