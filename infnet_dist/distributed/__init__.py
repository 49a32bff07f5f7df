"""Collectives, control flags, heartbeat and watchdog of the workers."""
