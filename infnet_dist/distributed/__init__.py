"""This worker and the others: collectives, control flags, watchdog."""
