"""Benchmarks: each yields rows {bench, metric, value, unit, reference, ratio}."""
