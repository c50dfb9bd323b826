"""What a rule of a contract is, and how a component is held to it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch

from cryobench.core import Shape
from cryobench.core.kinds import check_kind
from cryobench.errors import CryobenchError, told
from cryobench.registry import Registry, installed
from cryobench.spec import Spec, parse

SEED = 20
SIDES = (32, 64, 128, 256)
"""Of the square images that a component is tried on: the first side that it takes."""


class Broken(AssertionError):
    """A component breaks a rule; the message says how."""


class DoesNotApply(Exception):
    """A rule says nothing about this component; the message says why."""


@dataclass(frozen=True)
class Rule:
    """One thing that must hold for every component of a kind. remedy: what to do where it does not.

    check: takes a `Subject`; raises `Broken` or `DoesNotApply`. vital: whether nothing else can be told where it is
    broken.
    """

    name: str
    remedy: str
    check: Callable[[Any], None]
    vital: bool = False


@dataclass(frozen=True)
class Verdict:
    """What came of a rule. why: how it is broken, or why it does not apply."""

    rule: Rule
    status: Literal["holds", "broken", "does not apply"]
    why: str = ""


class Rules(list[Rule]):
    """Rules in the order in which they are tried: `@rules("what must hold", "what to do")` on a check adds one."""

    def __call__(
        self, name: str, remedy: str, *, vital: bool = False
    ) -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
        def add(check: Callable[[Any], None]) -> Callable[[Any], None]:
            self.append(Rule(name, remedy, check, vital))
            return check

        return add


class Subject:
    """A component under test, by kind and spec, and what its rules share; a kind adds the objects that it makes."""

    def __init__(self, kind: str, text: str, registry: Registry | None = None):
        self.kind, self.text, self.registry = kind, text, registry or installed()

    @cached_property
    def spec(self) -> Spec:
        return parse(self.text)

    @cached_property
    def component(self) -> Any:
        """Raises the `CryobenchError` of a component that cannot be made."""
        made = self.registry.make(self.kind, self.spec)
        check_kind(self.kind, self.text, made)
        return made

    def made_again(self) -> Any:
        """Another object of the same component."""
        return self.registry.make(self.kind, self.spec)


def judge(rule: Rule, subject: Subject) -> Verdict:
    """Hold a component to a rule. Whatever else it raises breaks the rule too."""
    try:
        with _put_back():
            rule.check(subject)
    except DoesNotApply as reason:
        return Verdict(rule, "does not apply", str(reason))
    except CryobenchError as error:
        return Verdict(rule, "broken", str(error))
    except Exception as error:  # a stranger's code may raise anything
        return Verdict(rule, "broken", str(error) if isinstance(error, Broken) else told(error))
    return Verdict(rule, "holds")


def smallest_shape(check: Callable[[Shape], object], sides: Sequence[int] = SIDES) -> Shape:
    """The smallest square images for which `check` raises no `CryobenchError`. Raises `Broken` where there are none."""
    refused = ""
    for side in sides:
        try:
            check((side, side))
        except CryobenchError as error:
            refused = str(error)
        else:
            return side, side
    raise Broken(f"it takes no images of {', '.join(map(str, sides))} pixels: {refused}")


def require(true: object, how: str) -> None:
    """Raise `Broken` unless it is true."""
    if not true:
        raise Broken(how)


def require_equal(got: torch.Tensor, wanted: torch.Tensor, tolerance: float, what: str) -> None:
    """Raise `Broken` unless two tensors agree within tolerance times the largest magnitude that is wanted."""
    require(got.shape == wanted.shape, f"{what}: shape {list(got.shape)}, wanted {list(wanted.shape)}")
    if not wanted.numel():
        return
    off = (got - wanted).abs().max().item()
    scale = max(wanted.abs().max().item(), torch.finfo(torch.float32).tiny)
    require(off <= tolerance * scale, f"{what}: off by {off / scale:.2g} of the largest value, {tolerance:g} allowed")


@contextmanager
def untouched(*tensors: torch.Tensor) -> Iterator[None]:
    """Raise `Broken` where one of these tensors is another one afterwards."""
    before = [tensor.clone() for tensor in tensors]
    yield
    for tensor, kept in zip(tensors, before, strict=True):
        require(torch.equal(tensor, kept), "it wrote into what it was given")


@contextmanager
def no_trace() -> Iterator[None]:
    """Raise `Broken` where global state is another one afterwards."""
    before = _global_state()
    yield
    after = _global_state()
    for name, value in before.items():
        require(_same(value, after[name]), f"it changed the global {name}")


@contextmanager
def _put_back() -> Iterator[None]:
    """Global state afterwards is what it was before: what a rule finds does not depend on those before it."""
    before = _global_state()
    try:
        yield
    finally:
        torch.set_rng_state(before["random state of torch"])
        np.random.set_state(before["random state of numpy"])
        random.setstate(before["random state of Python"])
        torch.set_default_dtype(before["default dtype of torch"])
        torch.set_grad_enabled(before["gradient mode of torch"])
        torch.set_num_threads(before["number of threads of torch"])


def _global_state() -> dict[str, Any]:
    return {
        "random state of torch": torch.get_rng_state(),
        "random state of numpy": np.random.get_state(),
        "random state of Python": random.getstate(),
        "default dtype of torch": torch.get_default_dtype(),
        "gradient mode of torch": torch.is_grad_enabled(),
        "number of threads of torch": torch.get_num_threads(),
    }


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(np.array_equal(a, b))


def particles(shape: Shape, count: int = 3) -> torch.Tensor:
    """Smooth test images in [-1, 1], each of another sum of Gaussian spots, float64 [count, 1, H, W]."""
    g = torch.Generator().manual_seed(SEED)
    v, u = (torch.linspace(-1, 1, n, dtype=torch.float64) for n in shape)
    images = []
    for _ in range(count):
        spots = torch.zeros(shape, dtype=torch.float64)
        for _ in range(5):
            y, x, width = (torch.rand(3, generator=g, dtype=torch.float64) * torch.tensor([1.0, 1.0, 0.2])).tolist()
            spots += torch.exp(-((v[:, None] - y + 0.5) ** 2 + (u - x + 0.5) ** 2) / (2 * (0.1 + width) ** 2))
        images.append(2 * spots / spots.max() - 1)
    return torch.stack(images)[:, None]
