"""`tiled`: any solver on overlapping windows of a large image or volume, whose results are blended.

It applies to operators that treat windows separately (`LinearOperator.crop`): the measurements of a window are then a
problem of their own. Memory beyond the measurements and the result is that of a few windows.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import torch

from cryobench.core import LinearOperator, Prior, Problem, Progress, Reconstruction, Shape, Solver, Window
from cryobench.core.recording import paused
from cryobench.core.windows import Windows
from cryobench.errors import ParameterError, Unsupported
from cryobench.numerics.linalg import concatenate_curves, per_item
from cryobench.rng import Rng
from cryobench.spec import Component

DEFAULT_TILE = 512
"""Side of the windows of solvers whose priors have no training images of a known shape."""
_PIXELS_AT_ONCE = 2**20
"""Windows are solved together up to this many pixels, 4 of 512 x 512."""
_PARTS = 100
"""Steps of progress for each window."""


@dataclass(frozen=True)
class Tiled(Solver):
    """A solver on overlapping windows of the image, blended with raised-cosine weights that sum to one.

        x = sum_j w_j x_j,    sum_j w_j = 1

    Each window is a problem of its own: an automatic weight or step size is chosen for it. A window's random numbers
    are keyed by its position. An image no larger than a window gives what the solver itself gives. Of the numbers for
    each window, `info` and curves hold the mean, `converged` and other truth values whether all are true; deviations
    are blended as the images are.
    """

    solver: Annotated[Solver, Component("solvers"), "solver of each window"]
    tile: Annotated[
        int | None, "largest side of a window, in pixels; none: that of the training images of its prior, else 512"
    ] = None
    overlap: Annotated[
        int, "pixels that neighbouring windows share, at least; with tile=none at most half a window"
    ] = 64

    def __post_init__(self) -> None:
        if self.overlap < 0:
            raise ParameterError(f"tiled: overlap must be zero or more pixels, got {self.overlap}")
        if self.tile is not None and self.tile <= self.overlap:
            raise ParameterError(f"tiled: tile must be larger than overlap={self.overlap}, got tile={self.tile}")

    any_size = True

    @property
    def side(self) -> int:
        """The largest side of a window: `tile`, or its default."""
        if self.tile is not None:
            return self.tile
        prior = getattr(self.solver, "prior", None)
        trained = prior.trained_shape if isinstance(prior, Prior) else None
        return DEFAULT_TILE if trained is None else min(trained)

    @property
    def dims(self) -> tuple[int, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Those of the solver."""
        return self.solver.dims

    def solved_shape(self, shape: Shape) -> Shape:
        return self.solver.solved_shape(tuple(min(n, self.side) for n in shape))

    def unsupported(self, problem: Problem) -> str | None:
        if self._fits(problem):
            return self.solver.unsupported(problem)
        try:
            tiles = self._tiles(problem.operator)
            first = _windowed(problem, tiles, [(tiles.windows[0], 0)])
        except Unsupported as reason:
            return f"tiled needs the operator of a window: {reason}"
        return self.solver.unsupported(first)

    def solve(self, problem: Problem, *, rng: Rng, progress: Progress | None = None) -> Reconstruction:
        if self._fits(problem):
            return self.solver.solve(problem, rng=rng, progress=progress)
        tiles = self._tiles(problem.operator)
        items = list(itertools.product(tiles.windows, range(problem.batch)))
        count = max(1, _PIXELS_AT_ONCE // math.prod(tiles.shape))
        x = problem.y.new_zeros(problem.image_batch_shape)
        deviation: torch.Tensor | None = None
        numbers: list[Reconstruction] = []
        for start in range(0, len(items), count):
            batch = items[start : start + count]

            def report(done: int, steps: int, start: int = start, size: int = len(batch)) -> None:
                if progress is not None:
                    progress(_PARTS * start + _PARTS * size * done // max(steps, 1), _PARTS * len(items))

            part = _windowed(problem, tiles, batch)
            own = Rng(rng.seed, [f"{rng.image_ids[i]}[{_named(window)}]" for window, i in batch])
            with paused():
                answer = self.solver.solve(part, rng=own, progress=report)
            if answer.deviation is None:
                deviation = None
            elif start == 0:
                deviation = torch.zeros_like(x)
            for j, (window, i) in enumerate(batch):
                weights = tiles.weights(window).to(x)
                x[(i, slice(None), *window)] += weights * answer.x[j]
                if deviation is not None and answer.deviation is not None:
                    deviation[(i, slice(None), *window)] += weights * answer.deviation[j]
            numbers.append(Reconstruction(x[:0], answer.info, answer.curves, samples=answer.samples))
            report(1, 1)
        info, curves = _means(numbers, problem.batch)
        samples = numbers[0].samples if deviation is not None else None
        return Reconstruction(x, info, curves, deviation, samples=samples)

    def windows(self, operator: LinearOperator) -> list[Window]:
        """The windows of the images of an operator. Raises `Unsupported` if `tile` is too small for its blocks."""
        return self._tiles(operator).windows

    def _fits(self, problem: Problem) -> bool:
        return max(problem.operator.image_shape) <= self.side

    def _tiles(self, operator: LinearOperator) -> Windows:
        side = self.side
        overlap = self.overlap if self.tile is not None else min(self.overlap, side // 2)
        return Windows(operator.image_shape, side, overlap, operator.crop_step)


def _named(window: Window) -> str:
    return ",".join(f"{part.start}:{part.stop}" for part in window)


def _windowed(problem: Problem, tiles: Windows, items: Sequence[tuple[Window, int]]) -> Problem:
    """The problem of some windows, each of one image: a batch of images of the shape of a window."""
    crops = {_named(window): problem.operator.crop(window) for window, _ in items}
    operators, measured = [], []
    for window, i in items:
        crop = crops[_named(window)]
        shared = crop.operator.images is None
        operators.append(crop.operator if shared else crop.operator.select(slice(i, i + 1)))
        measured.append(crop.of(problem.y[i : i + 1]))
    images = torch.tensor([i for _, i in items])
    sigma = problem.sigma if len(problem.sigma) == 1 else problem.sigma[images.to(problem.sigma.device)]
    operator = WindowsOperator(operators, problem.operator)
    return Problem(operator, torch.cat(measured), problem.noise, sigma, problem.scale.select(images))


def _means(answers: Sequence[Reconstruction], images: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The info and curves of each image from those of its windows, window by window: see `Tiled`. Names that are
    missing for some windows are omitted."""

    def names(of: Callable[[Reconstruction], dict[str, torch.Tensor]]) -> list[str]:
        return [name for name in of(answers[0]) if all(name in of(answer) for answer in answers)]

    info = {}
    for name in names(lambda answer: answer.info):
        values = torch.cat([torch.as_tensor(answer.info[name]).flatten() for answer in answers]).reshape(-1, images)
        info[name] = values.all(dim=0) if values.dtype == torch.bool else values.double().mean(dim=0)
    curves = {}
    for name in names(lambda answer: answer.curves):
        values = concatenate_curves([torch.as_tensor(answer.curves[name]) for answer in answers])
        curves[name] = values.reshape(-1, images, values.shape[1]).nanmean(dim=0)
    return info, curves


class WindowsOperator(LinearOperator):
    """A batch of windows, each with its own operator. parts: their operators, all of one shape.

    `compute_norm` and `rank` do not depend on which windows are in the batch: the norm is that of the whole image, an
    upper bound, and the rank the mean over all windows, rounded down.
    """

    def __init__(self, parts: Sequence[LinearOperator], whole: LinearOperator):
        self._parts, self._whole, first = tuple(parts), whole, parts[0]
        self.image_shape, self.channels = first.image_shape, first.channels
        self.measurement_shape = tuple(first.measurement_shape)
        self.dtype, self.device = first.dtype, first.device
        self.nominal_compression, self.block = first.nominal_compression, first.block
        self.nonnegative, self.noise_in_range = whole.nonnegative, whole.noise_in_range
        self.closed_form = all(part.closed_form for part in self._parts)
        self.identity = whole.identity
        self.images = len(self._parts)
        self.cg_tol, self.cg_max_steps = first.cg_tol, first.cg_max_steps

    def _each(self, name: str, *batches: torch.Tensor) -> torch.Tensor:
        """A method of each window's operator on its row of each batch."""
        rows = zip(self._parts, *(batch.split(1) for batch in batches), strict=True)
        return torch.cat([getattr(part, name)(*row) for part, *row in rows])

    def A(self, x: torch.Tensor) -> torch.Tensor:
        return self._each("A", x)

    def A_adjoint(self, y: torch.Tensor) -> torch.Tensor:
        return self._each("A_adjoint", y)

    def A_adjoint_A(self, x: torch.Tensor) -> torch.Tensor:
        return self._each("A_adjoint_A", x)

    def A_dagger(self, y: torch.Tensor) -> torch.Tensor:
        return self._each("A_dagger", y)

    def on_range(self, y: torch.Tensor) -> torch.Tensor:
        return self._each("on_range", y)

    def A_dagger_A(self, x: torch.Tensor, gamma: torch.Tensor | float = math.inf) -> torch.Tensor:
        each = per_item(torch.as_tensor(gamma, dtype=x.dtype).to(x.device), x)
        return self._each("A_dagger_A", x, each.expand(len(x), *each.shape[1:]))

    def prox_l2(self, z: torch.Tensor, y: torch.Tensor, gamma: float) -> torch.Tensor:
        rows = zip(self._parts, z.split(1), y.split(1), strict=True)
        return torch.cat([part.prox_l2(own, measured, gamma) for part, own, measured in rows])

    def compute_norm(self) -> float:
        return self._whole.compute_norm()

    @property
    def norms(self) -> torch.Tensor:
        return torch.cat([part.norms for part in self._parts])

    @property
    def rank(self) -> int:
        return self._whole.rank * math.prod(self.image_shape) // math.prod(self._whole.image_shape)

    @property
    def transfer(self) -> torch.Tensor | None:
        found = [transfer for part in self._parts if (transfer := part.transfer) is not None]
        return torch.cat(found) if len(found) == len(self._parts) else None

    @property
    def positions(self) -> tuple[torch.Tensor, ...] | None:
        return self._parts[0].positions

    @cached_property
    def mean_response(self) -> torch.Tensor:
        return torch.cat([part.mean_response for part in self._parts])

    def select(self, images: slice | torch.Tensor) -> WindowsOperator:
        chosen = torch.arange(len(self._parts))[images if isinstance(images, slice) else images.cpu()]
        return WindowsOperator([self._parts[i] for i in chosen.tolist()], self._whole)

    def rows(self, part: slice | torch.Tensor) -> WindowsOperator:
        return WindowsOperator([operator.rows(part) for operator in self._parts], self._whole.rows(part))
