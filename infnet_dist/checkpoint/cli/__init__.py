"""The checkpoint command: list, verify, inspect, diff, export, prune."""
