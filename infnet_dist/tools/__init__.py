"""Tools beside the library."""
