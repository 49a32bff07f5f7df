"""Many models under one protocol: trials, their measurements, and what they say together."""
