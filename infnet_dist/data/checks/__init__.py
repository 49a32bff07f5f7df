"""Checks that parts match their manifest and schema."""
