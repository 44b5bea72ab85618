"""Auto-PGD in float64 NumPy: Algorithm 1 of the paper, one image after another.

The model is logits = tanh((x - 1/2) A) B + c. Its gradients are derived by hand.
"""

import dataclasses
import itertools

import numpy as np


@dataclasses.dataclass
class Step:
    """The state of the search after a step, and what the test needs to know about the
    step.
    """

    point: np.ndarray
    best: np.ndarray
    best_loss: float
    eta: float
    # The conditions of Algorithm 1 that hold, if this step is a checkpoint; None
    # otherwise.
    conditions: tuple[str, ...] | None
    broken: bool
    # Whether two losses that the algorithm compares are equal up to rounding.
    tie: bool


def logits(x, first, second, offset):
    return np.tanh((x - 0.5) @ first) @ second + offset


def loss_and_gradient(x, label, target, first, second, offset):
    """Return the loss and its gradient: cross-entropy, or DLR towards a target."""
    units = np.tanh((x - 0.5) @ first)
    z = units @ second + offset
    if target is None:
        p = np.exp(z - z.max())
        p /= p.sum()
        loss, slope = -np.log(p[label]), p.copy()
        slope[label] -= 1
    else:
        order = np.argsort(-z)
        scale = z[order[0]] - (z[order[2]] + z[order[3]]) / 2
        loss = (z[target] - z[label]) / scale
        top, scale_slope = np.zeros_like(z), np.zeros_like(z)
        top[target] += 1
        top[label] -= 1
        scale_slope[order[0]] += 1
        scale_slope[order[2:4]] -= 0.5
        slope = (top - loss * scale_slope) / scale
    return loss, first @ ((1 - units**2) * (second @ slope))


def project(x, image, norm, epsilon):
    delta = x - image
    if norm == "linf":
        delta = np.clip(delta, -epsilon, epsilon)
    else:
        # The attack leaves this margin for float32, and keeps it in float64.
        delta = delta * min(1, epsilon * (1 - 1e-6) / np.linalg.norm(delta))
    return np.clip(image + delta, 0, 1)


def walk(image, start, label, target, model, *, norm, epsilon, steps, rho):
    """Return the Steps after `start`, up to and including the first that breaks the
    image.
    """

    def up(gradient):
        return np.sign(gradient) if norm == "linf" else gradient / size(gradient)

    size = np.linalg.norm
    x_old = x = x_max = start
    loss, gradient = loss_and_gradient(x, label, target, *model)
    f_max, gradient_max, eta = loss, gradient, 2 * epsilon
    losses = [loss]
    period = max(int(0.22 * steps), 1)
    last_checkpoint, f_max_then, halved_then = 0, f_max, True
    found = []
    for k in range(steps):
        z = project(x + eta * up(gradient), image, norm, epsilon)
        alpha = 1 if k == 0 else 0.75
        x_new = x + alpha * (z - x) + (1 - alpha) * (x - x_old)
        x_old, x = x, project(x_new, image, norm, epsilon)
        loss, gradient = loss_and_gradient(x, label, target, *model)
        losses.append(loss)
        compared = [(x_old, losses[-2]), (x_max, f_max)]
        tie = any(abs(loss - f) < 1e-12 and (x != y).any() for y, f in compared)
        if loss > f_max:
            x_max, f_max, gradient_max = x, loss, gradient
        broken = np.argmax(logits(x, *model)) != label
        conditions = None
        if k + 1 == last_checkpoint + period:
            since = losses[last_checkpoint:]
            rises = sum(b > a for a, b in itertools.pairwise(since))
            conditions = ()
            if rises < rho * period:
                conditions += ("few rises",)
            if not halved_then and f_max == f_max_then:
                conditions += ("no better",)
            if conditions:
                eta, x, gradient = eta / 2, x_max, gradient_max
            last_checkpoint, f_max_then = k + 1, f_max
            halved_then = bool(conditions)
            period = max(period - max(int(0.03 * steps), 1), int(0.06 * steps), 1)
        found.append(Step(x, x_max, f_max, eta, conditions, broken, tie))
        if broken:
            break
    return found
