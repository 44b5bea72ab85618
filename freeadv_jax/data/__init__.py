"""Data sets, and batches of them as functions of (seed, step)."""
