"""Natural, Free-m and K-PGD training in PyTorch, as its users would write it today.

This means channels_last, autocast for bfloat16, torch.compile where it works and helps,
fused SGD, and uint8 images that are augmented on the device. The style of the reference
code means NCHW, float32, eager execution, images augmented one by one on the host and
sent as float32, and loss and accuracy read on the host after every replay.
"""

import dataclasses
import signal
import statistics
import time
from collections.abc import Callable

import jax
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.contender import Contender, process_memory
from benchmarks.peers.torch_batches import Batch, device_batches, host_batches
from benchmarks.peers.torch_networks import torch_classifier
from freeadv_jax.config import replays
from freeadv_jax.data.split import Split
from freeadv_jax.runs.build import initial_state_of
from freeadv_jax.runs.folder import Run

# torch.compile may take this many seconds for the forward and the backward pass.
_COMPILING = 300


@dataclasses.dataclass
class Learner:
    """A model in training, from images f32[b, c, h, w] in [0, 1] to logits."""

    model: Callable[[torch.Tensor], torch.Tensor]
    optimizer: torch.optim.Optimizer
    # The precision of the computation, by autocast.
    dtype: torch.dtype = torch.float32
    # Whether the host reads loss and accuracy after each update.
    reads_each_update: bool = False

    def loss(self, images, labels):
        """Return the mean loss of the batch, and the logits."""
        mixed = self.dtype != torch.float32
        with torch.autocast(images.device.type, self.dtype, enabled=mixed):
            logits = self.model(images)
        logits = logits.float()
        return F.cross_entropy(logits, labels), logits

    def update(self, images, labels):
        """Update the weights; other tensors that require gradients get theirs."""
        loss, logits = self.loss(images, labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        accuracy = (logits.detach().argmax(1) == labels).float().mean()
        metrics = {"loss": loss.detach(), "accuracy": accuracy}
        if self.reads_each_update:
            metrics = {name: value.item() for name, value in metrics.items()}
        return metrics


def natural_step(learner: Learner, batch: Batch) -> dict:
    """Make one update on the natural images."""
    return learner.update(*batch)


def free_step(
    learner: Learner,
    batch: Batch,
    delta: torch.Tensor,
    *,
    epsilon: float,
    step_size: float,
    replays: int,
    straight_through: bool = False,
) -> dict:
    """Make `replays` updates of the weights and, in place, of `delta` (Free-m).

    One backward pass gives both gradients. The gradient of delta passes through the clip, or
    straight past it with `straight_through`.
    """
    images, labels = batch
    for _ in range(replays):
        delta.requires_grad_().grad = None
        attacked = images + delta
        clipped = attacked.clamp(0, 1)
        if straight_through:
            clipped = attacked + (clipped - attacked).detach()
        metrics = learner.update(clipped, labels)
        with torch.no_grad():
            delta.add_(delta.grad.sign(), alpha=step_size).clamp_(-epsilon, epsilon)
    return metrics


def pgd_step(
    learner: Learner,
    batch: Batch,
    start: torch.Tensor,
    *,
    epsilon: float,
    step_size: float,
    steps: int,
) -> dict:
    """Make one update on images attacked by `steps` of PGD from images + `start`."""
    images, labels = batch
    lowest, highest = (images - epsilon).clamp(min=0), (images + epsilon).clamp(max=1)
    point = (images + start).clamp(0, 1)
    weights = [
        weight for group in learner.optimizer.param_groups for weight in group["params"]
    ]
    # Otherwise a compiled backward pass would compute their gradients too.
    for weight in weights:
        weight.requires_grad_(False)
    for _ in range(steps):
        loss, _ = learner.loss(point.requires_grad_(), labels)
        (gradient,) = torch.autograd.grad(loss, point)
        point = point.detach() + step_size * gradient.sign()
        point = torch.minimum(torch.maximum(point, lowest), highest)
    for weight in weights:
        weight.requires_grad_()
    return learner.update(point, labels)


def sgd(run: Run, model: nn.Module, **options) -> torch.optim.SGD:
    """Return the optimizer of `run` with its first learning rate."""
    fields = run.config.optimizer
    groups = {True: [], False: []}
    for weight in model.parameters():
        groups[fields.decayed == "all" or weight.ndim > 1].append(weight)
    return torch.optim.SGD(
        [
            {"params": groups[True], "weight_decay": fields.weight_decay},
            {"params": groups[False], "weight_decay": 0.0},
        ],
        lr=fields.learning_rate,
        momentum=fields.momentum,
        nesterov=fields.nesterov,
        **options,
    )


def theirs(run: Run, split: Split, *, reference_style: bool) -> Contender:
    """Return PyTorch's contender, which begins with the same weights as ours."""
    jax.config.update("jax_platforms", "cpu")  # JAX only draws the weights.
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
        # JAX does the same with float32, and so does PyTorch in convolutions.
        torch.set_float32_matmul_precision("high")
    config = run.config
    model = (
        torch_classifier(run, initial_state_of(run).variables).train().requires_grad_()
    )
    remarks = {"threads": torch.get_num_threads(), "device": device.type}
    if reference_style:
        layout, batches = torch.contiguous_format, host_batches(run, split, device)
        options = {"reads_each_update": True}
    else:
        layout, batches = torch.channels_last, device_batches(run, split, device)
        options = {"dtype": getattr(torch, config.model.dtype)}
    model.to(device, memory_format=layout)
    learner = Learner(model, sgd(run, model, fused=not reference_style), **options)
    shape = (config.batch_size, run.image_shape[2], *run.image_shape[:2])
    delta = torch.zeros(shape, device=device).to(memory_format=layout)
    compile_seconds = 0.0
    if not reference_style:
        short = config.copy_and_resolve_references()
        short.attack.replays = short.attack.steps = 1
        step, batch = _stepper(short, learner, delta), next(batches)
        compile_seconds, verdict = _compile(learner, lambda: step(batch))
        remarks["torch.compile"] = verdict
        print(f"  torch.compile {verdict}", flush=True)
    return Contender(
        _stepper(config, learner, delta),
        batches,
        replays(config),
        compile_seconds,
        lambda: _peak_memory(device),
        remarks,
    )


def _stepper(config, learner, delta):
    """Return the step of the configured method."""
    attack = config.attack
    ball = {"epsilon": attack.epsilon, "step_size": attack.step_size}
    free = {"replays": attack.replays, "straight_through": attack.straight_through}

    def pgd(batch):
        start = torch.empty_like(delta).uniform_(-attack.epsilon, attack.epsilon)
        return pgd_step(learner, batch, start, steps=attack.steps, **ball)

    return {
        "natural": lambda batch: natural_step(learner, batch),
        "free": lambda batch: free_step(learner, batch, delta, **ball, **free),
        "pgd": pgd,
    }[config.method]


def _compile(learner, step):
    """Compile the model, and keep the compiled one if `step` is faster with it.

    The medians of five steps of each, taken in turns, decide. Return the seconds of the
    first compiled step and a verdict. Programs that an earlier process left on disk are
    not used.
    """
    eager = learner.model

    def seconds(model):
        learner.model = model
        started = time.perf_counter()
        float(step()["loss"])
        return time.perf_counter() - started

    def give_up(*_):
        raise TimeoutError(f"not done after {_COMPILING} s")

    seconds(eager)
    torch.compiler.config.force_disable_caches = True
    compiled = torch.compile(eager)
    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(_COMPILING)
    try:
        compile_seconds = seconds(compiled)
    except (RuntimeError, OSError) as fault:  # No C++ compiler, or none in time.
        learner.model = eager
        said = str(fault).strip().splitlines() or [""]
        return 0.0, f"not used, {type(fault).__name__}: {said[0]}"
    finally:
        signal.alarm(0)
    turns = [(seconds(eager), seconds(compiled)) for _ in range(5)]
    slow, fast = map(statistics.median, zip(*turns, strict=True))
    learner.model = compiled if fast < slow else eager
    verdict = "used" if fast < slow else "not used"
    times = f"a short step takes {fast:.4f} s, eager {slow:.4f} s"
    return compile_seconds, f"{verdict}: {times}"


def _peak_memory(device):
    if device.type == "cuda":
        return {"bytes": torch.cuda.max_memory_allocated(), "of": "device"}
    return process_memory()
