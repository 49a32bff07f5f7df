"""Petastorm data sets: read as training sets, or as logs."""
