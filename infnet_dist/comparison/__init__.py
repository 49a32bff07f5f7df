"""Comparison of many models under one protocol: trials, measurements, results, report."""
