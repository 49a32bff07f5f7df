"""The rows of train that a run reads: a window, and a sample of older rows."""
