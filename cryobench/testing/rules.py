"""Rules of a contract, and the test of a component against a rule."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Any, Literal

import numpy as np
import torch

from cryobench.core import FourierMask, PixelMask, Prior, Shape
from cryobench.core.kinds import check_kind
from cryobench.errors import CryobenchError, described, reason_of
from cryobench.global_state import restored
from cryobench.plan.grid import with_nested
from cryobench.registry import Registry, installed
from cryobench.spec import Spec, parse

SEED = 20
SHAPES: dict[int, tuple[Shape, ...]] = {
    2: ((32, 32), (64, 64), (128, 128), (256, 256)),
    3: ((8, 8, 16), (8, 8, 8), (16, 16, 16), (32, 32, 32)),
}
"""Shapes by number of axes. A component is tested on the first that it accepts."""


class Broken(AssertionError):
    """A component breaks a rule; the message says how."""


class DoesNotApply(Exception):
    """A rule does not apply to a component; the message says why."""


@dataclass(frozen=True)
class Rule:
    """A requirement on every component of a kind. remedy: what to do if it is broken.

    check: takes a `Subject`; raises `Broken` or `DoesNotApply`. vital: if it is broken, no other rule is tested.
    once: tested once, not for each number of axes that the component states.
    """

    name: str
    remedy: str
    check: Callable[[Any], None]
    vital: bool = False
    once: bool = False


@dataclass(frozen=True)
class RuleResult:
    """The result of a rule. why: how it is broken, or why it does not apply."""

    rule: Rule
    status: Literal["holds", "broken", "does not apply"]
    why: str = ""


class Rules(list[Rule]):
    """Rules in the order in which they are tested; `@rules(name, remedy)` on a check adds one."""

    def __call__(
        self, name: str, remedy: str, *, vital: bool = False, once: bool = False
    ) -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
        def add(check: Callable[[Any], None]) -> Callable[[Any], None]:
            self.append(Rule(name, remedy, check, vital, once))
            return check

        return add


class Subject:
    """A component under test on images of `dims` axes, with values shared by its rules. Each kind has a subclass."""

    def __init__(self, kind: str, text: str, registry: Registry | None = None, dims: int = 2):
        self.kind, self.text, self.registry, self.dims = kind, text, registry or installed(), dims

    @cached_property
    def spec(self) -> Spec:
        return parse(self.text)

    @cached_property
    def component(self) -> Any:
        """Raises the `CryobenchError` of a component that cannot be made."""
        made = self.registry.make(self.kind, self.spec)
        check_kind(self.kind, self.text, made)
        return made

    def make_another(self) -> Any:
        """Another object of the same component."""
        return self.registry.make(self.kind, self.spec)

    @cached_property
    def by_dims(self) -> list[Subject]:
        """A subject for each number of axes that the component, its masks and its priors all state."""
        if not hasattr(self.component, "dims"):  # a source
            return [self]
        nested = [part for part in with_nested(self.component) if isinstance(part, PixelMask | FourierMask | Prior)]
        stated = [dims for dims in self.component.dims if all(dims in part.dims for part in nested)]
        return [type(self)(self.kind, self.text, self.registry, dims) for dims in stated]

    def smallest_shape(self, check: Callable[[Shape], object], shapes: Sequence[Shape] = ()) -> Shape:
        """The first of `shapes`, by default `SHAPES`, for which `check` raises no `CryobenchError`, else `Broken`."""
        refused, shapes = "", shapes or SHAPES[self.dims]
        for shape in shapes:
            try:
                check(shape)
            except CryobenchError as error:
                refused = str(error)
            else:
                return shape
        sizes = ", ".join(" x ".join(map(str, shape)) for shape in shapes)
        raise Broken(f"it refuses all of {sizes} pixels: {refused}")


def check_rule(rule: Rule, subject: Subject) -> RuleResult:
    """Test a component against a rule, for every number of axes that it states. Any exception counts as broken."""
    if rule.once:
        return _check_one(rule, subject)
    try:
        subjects = subject.by_dims
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a plugin may raise anything
        return RuleResult(rule, "broken", _message(error))
    results = [(part.dims, _check_one(rule, part)) for part in subjects]
    for dims, result in results:
        if result.status == "broken":
            where = f"in {dims}-D: " if len(results) > 1 else ""
            return RuleResult(rule, "broken", where + result.why)
    if all(result.status == "does not apply" for _, result in results):
        return results[0][1] if results else RuleResult(rule, "does not apply", "it states no dimensions in `dims`")
    return RuleResult(rule, "holds")


def _check_one(rule: Rule, subject: Subject) -> RuleResult:
    try:
        with restored(environment=False):  # a rule must not depend on those before it
            rule.check(subject)
    except DoesNotApply as reason:
        return RuleResult(rule, "does not apply", str(reason))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a plugin may raise anything
        return RuleResult(rule, "broken", _message(error))
    return RuleResult(rule, "holds")


def _message(error: BaseException) -> str:
    return reason_of(error) if isinstance(error, CryobenchError | Broken) else described(error)


def require(true: object, how: str) -> None:
    """Raise `Broken` with the message `how` unless `true`."""
    if not true:
        raise Broken(how)


def require_equal(
    got: torch.Tensor, expected: torch.Tensor, tolerance: float, what: str, *, scale: float = 0.0
) -> None:
    """Raise `Broken` unless two tensors agree within `tolerance` times max(`scale`, the largest |expected|)."""
    require(got.shape == expected.shape, f"{what}: shape {list(got.shape)}, expected {list(expected.shape)}")
    if not expected.numel():
        return
    off = (got - expected).abs().max().item()
    scale = max(expected.abs().max().item(), scale, torch.finfo(torch.float32).tiny)
    require(off <= tolerance * scale, f"{what}: off by {off / scale:.2g} of the largest value, {tolerance:g} allowed")


@contextmanager
def unmodified(*tensors: torch.Tensor) -> Iterator[None]:
    """Raise `Broken` if the block changes one of these tensors."""
    before = [tensor.clone() for tensor in tensors]
    yield
    for tensor, kept in zip(tensors, before, strict=True):
        require(torch.equal(tensor, kept), "it modified its input")


@contextmanager
def global_state_unchanged() -> Iterator[None]:
    """Raise `Broken` if the block changes global state."""
    before = _global_state()
    yield
    after = _global_state()
    for name, value in before.items():
        require(_same(value, after[name]), f"it changed the global {name}")


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
    """Smooth test images or volumes in [-1, 1], different sums of Gaussian spots, float64 [count, 1, *S]."""
    g = torch.Generator().manual_seed(SEED)
    axes = [torch.linspace(-1, 1, n, dtype=torch.float64) for n in shape]
    images = []
    for _ in range(count):
        spots = torch.zeros(shape, dtype=torch.float64)
        for _ in range(5):
            *centre, width = torch.rand(len(shape) + 1, generator=g, dtype=torch.float64).tolist()
            along = [torch.exp(-((axis - c + 0.5) ** 2) / (2 * (0.1 + 0.2 * width) ** 2))
                     for axis, c in zip(axes, centre, strict=True)]  # fmt: skip
            spots += reduce(torch.multiply, torch.meshgrid(*along, indexing="ij"))
        images.append(2 * spots / spots.max() - 1)
    return torch.stack(images)[:, None]
