"""What the quickstart's robustness is worth: natural training of the same network.

With half of its learning rate; budget, schedule and the rest are the same.

Command: python -m freeadv_jax.main --config=configs/digits_natural.py
Ours: benchmarks/results/digits.json, five seeds
"""

from freeadv_jax.recipes import digits


def get_config():
    config = digits()
    config.method = "natural"
    config.optimizer.learning_rate = 0.05
    return config
