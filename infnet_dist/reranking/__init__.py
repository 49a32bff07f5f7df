"""Predictions of the candidates of a request -> their order; needs numpy alone."""
