"""The contract of training objectives."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cryobench.core import Examples, Pairs, Samples, Shape, Stack, Window
from cryobench.errors import CryobenchError
from cryobench.testing.rules import SEED, Broken, Rules, Subject, global_state_unchanged, particles, require

RULES = Rules()
_CPU = torch.device("cpu")
_SIZE = 4
"""Samples of a batch."""


class _Noisy(Stack):
    """Images that are particles with noise, whose clean images and halves are known."""

    label = "synthetic images"

    def __init__(self, shape: Shape):
        self.shape = shape
        self._clean = particles(shape)[:, 0].numpy().astype(np.float32)
        noise = np.random.default_rng(SEED).normal(0, 0.3, size=(2, *self._clean.shape))
        self.halves = np.stack([self._clean, self._clean], axis=1) + noise.swapaxes(0, 1).astype(np.float32)

    def __len__(self) -> int:
        return len(self._clean)

    def read(self, index: int) -> np.ndarray:
        return self.halves[index, 0].copy()

    def clean(self, index: int) -> np.ndarray:
        return self._clean[index].copy()

    @property
    def pairs(self) -> Pairs | None:
        return _Halves(self.halves) if len(self.shape) == 2 else None


class _Halves(Pairs):
    label = "synthetic images"

    def __init__(self, halves: np.ndarray):
        self._halves = halves

    def __len__(self) -> int:
        return len(self._halves)

    def name(self, index: int) -> str:
        return f"synthetic{index}"

    def shape(self, index: int) -> tuple[int, int]:
        return self._halves.shape[2:]

    def read(self, index: int, window: Window | None = None) -> np.ndarray:
        halves = self._halves[index]
        return (halves if window is None else halves[(slice(None), *window)]).copy()

    def digests(self, index: int) -> tuple[str, str]:
        return f"{index} odd", f"{index} even"


class ObjectiveSubject(Subject):
    """An objective, on the first shape of images that it accepts."""

    @cached_property
    def examples(self) -> Examples:
        shape = self.smallest_shape(lambda shape: self._sampled(self._examples(shape)).batch(0, _SIZE))
        return self._examples(shape)

    def _examples(self, shape: Shape) -> Examples:
        return self.component.examples(_Noisy(shape))

    def _sampled(self, examples: Examples) -> Samples:
        return self.component.samples([examples], seed=SEED, device=_CPU)

    def samples(self) -> Samples:
        """New samples, which have not been drawn from."""
        return self._sampled(self.examples)

    @cached_property
    def network(self) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            return self.component.build(self.samples())

    def losses(self, read: Callable[[Samples], Any]) -> torch.Tensor:
        with torch.no_grad():
            return self.component.losses(self.network, read(self.samples()))


@RULES(
    "it accepts images of a common size, and gives samples of them",
    "give samples for 2-D images; raise a CryobenchError where data cannot be used",
    vital=True,
)
def gives_samples(subject: ObjectiveSubject) -> None:
    samples = subject.samples()
    require(isinstance(samples, Samples), f"samples() is a {type(samples).__name__}, expected cryobench.core.Samples")


@RULES("a loss for each sample", "return finite losses [n], before the mean over the batch")
def one_loss_each(subject: ObjectiveSubject) -> None:
    batch = subject.samples().batch(0, _SIZE)
    with torch.no_grad():
        for name in ("losses", "validation_losses"):
            losses = getattr(subject.component, name)(subject.network, batch)
            require(tuple(losses.shape) == (_SIZE,), f"{name} has shape {list(losses.shape)}, expected [{_SIZE}]")
            require(losses.isfinite().all(), f"{name} are not finite for random weights")


@RULES("the loss has a gradient", "compute the loss from the output of the network, with gradients")
def has_gradient(subject: ObjectiveSubject) -> None:
    subject.network.zero_grad()
    subject.component.losses(subject.network, subject.samples().batch(0, _SIZE)).mean().backward()
    gradients = [p.grad for p in subject.network.parameters() if p.grad is not None]
    require(any(gradient.abs().max() > 0 for gradient in gradients), "the gradient of the loss is zero or missing")


@RULES(
    "samples depend on the seed and their number only",
    "draw from numbers that are keyed by (seed, number), as cryobench.numerics.philox does: runs are interrupted",
)
def repeatable(subject: ObjectiveSubject) -> None:
    def later(samples: Samples) -> Any:
        samples.batch(0, _SIZE)
        return samples.batch(3, _SIZE)

    first, again = subject.losses(later), subject.losses(lambda samples: samples.batch(3, _SIZE))
    require(torch.equal(first, again), "the batch of step 3 depends on whether that of step 0 was drawn before it")


@RULES("a part of a batch is that part", "let `part` select among the samples of the step: processes share a batch")
def divisible(subject: ObjectiveSubject) -> None:
    whole = subject.losses(lambda samples: samples.batch(1, _SIZE))
    halves = [slice(0, _SIZE // 2), slice(_SIZE // 2, _SIZE)]
    parts = torch.cat([subject.losses(lambda samples, p=part: samples.batch(1, _SIZE, p)) for part in halves])
    require(parts.shape == whole.shape and torch.allclose(parts, whole, rtol=1e-4, atol=1e-6),
            "the samples of two processes are not those of one")  # fmt: skip


@RULES("samples do not change global state", "draw from numbers of your own, not from the global states")
def global_state(subject: ObjectiveSubject) -> None:
    samples = subject.samples()
    with global_state_unchanged():
        samples.batch(2, _SIZE)


@RULES("its files hold the weights", "let files() list the path `weights`, and write non-empty files")
def writes_files(subject: ObjectiveSubject) -> None:
    files = subject.component.files(subject.network)
    require(
        subject.component.weights in files, f"files() lists {', '.join(files)}, but not {subject.component.weights}"
    )
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, write) in enumerate(files.items()):
            path = Path(folder) / str(number)
            write(path)
            require(path.exists() and path.stat().st_size > 0, f"{name} was not written")


@RULES("other images are refused in one line", "raise a CryobenchError with a message of one line")
def refuses(subject: ObjectiveSubject) -> None:
    try:
        subject._sampled(subject._examples((1, 2))).batch(0, _SIZE)
    except CryobenchError as error:
        require("\n" not in str(error), "the message of its error is more than one line")
    except Exception as error:
        raise Broken(f"images of 1 x 2 pixels raise a {type(error).__name__}, expected a CryobenchError") from error
