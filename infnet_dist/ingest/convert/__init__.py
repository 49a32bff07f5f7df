"""Columns of any Arrow type -> the types of a training set: exactly, or not at all."""
