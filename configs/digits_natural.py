"""Natural training of the quickstart's network: the baseline of its robustness.

The learning rate is half of the quickstart's; budget, schedule and the rest are equal.

Command: python -m freeadv_jax.main --config=configs/digits_natural.py
Ours: benchmarks/results/digits.json, five seeds
"""

from freeadv_jax.recipes import digits


def get_config():
    config = digits()
    config.method = "natural"
    config.optimizer.learning_rate = 0.05
    return config
