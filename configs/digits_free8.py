"""Quickstart: Free-8 on scikit-learn's digits, 8x8 pixels, L-inf epsilon 0.2.

Command: python -m freeadv_jax.main --config=configs/digits_free8.py
Ours: benchmarks/results/digits.json, five seeds
"""

from freeadv_jax.recipes import digits


def get_config():
    return digits()
