"""Measurements behind the figures of the README; results in benchmarks/results."""
