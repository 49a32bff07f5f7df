"""Entry points: the verbs of the `infnet` command; the only place that imports ray."""
