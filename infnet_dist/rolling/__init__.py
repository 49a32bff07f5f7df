"""The daily loop: its state, the gate, and the report of all generations."""
