"""The measurements behind the figures of the README and docs/; see benchmarks/results."""
