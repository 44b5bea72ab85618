"""Data sets by name, and their training batches as functions of (seed, step)."""
