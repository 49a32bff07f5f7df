"""Entry points, `python -m ray_jobs.<verb>`; the only place that imports ray."""
