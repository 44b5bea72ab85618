"""Auto-PGD in float64 NumPy, one image after another, as Algorithm 1 is written.

The model is logits = tanh((x - 1/2) A) B + c, whose gradients are worked out by hand.
"""

import dataclasses
import itertools

import numpy as np


@dataclasses.dataclass
class Step:
    """After a step: where the walk goes on, and what is known so far."""

    point: np.ndarray
    best: np.ndarray
    best_loss: float
    eta: float
    # At a checkpoint the names of the conditions that hold there, else None.
    conditions: tuple[str, ...] | None
    broken: bool
    # The loss is, up to rounding, that of another point it is compared with.
    tie: bool


def logits(x, first, second, offset):
    return np.tanh((x - 0.5) @ first) @ second + offset


def loss_and_gradient(x, label, target, first, second, offset):
    """Cross-entropy without a target, with one the DLR loss towards it."""
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
        # The attack leaves this much room for float32, in float64 as well.
        delta = delta * min(1, epsilon * (1 - 1e-6) / np.linalg.norm(delta))
    return np.clip(image + delta, 0, 1)


def walk(image, start, label, target, model, *, norm, epsilon, steps, rho):
    """The Steps from `start` on, up to the first that breaks the image."""

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
