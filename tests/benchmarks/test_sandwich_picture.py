"""benchmarks.sandwich: its picture has a plot for each training."""

import jax
import numpy as np
from PIL import Image

from benchmarks.sandwich import apply, draw, init


def result(certified, natural=0.9):
    parts = {"certified": certified, "open": 0.2, "broken": 0.8 - certified}
    return {"natural": natural, "by_epsilon": {0.05: parts, 0.1: parts}}


def test_the_picture_grows_with_the_trainings(tmp_path):
    widths = []
    for count in (1, 2):
        path = tmp_path / f"{count}.png"
        draw({str(number): result(0.3) for number in range(count)}, path)
        widths.append(Image.open(path).width)
    assert widths[1] > 1.6 * widths[0]


def test_the_network_classifies_digits():
    weights = init(jax.random.key(0), (8, 8, 1))
    logits = apply(weights, np.ones((3, 8, 8, 1), np.float32))
    assert logits.shape == (3, 10) and np.ptp(np.asarray(logits)) > 0
