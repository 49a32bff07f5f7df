"""Exact conversions of columns of any Arrow type to the types of a training set."""
