"""`interpolate` and `flow`: interpolation between measured rows or sections, the baselines of anisotropic data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch

from cryobench.core import Filled, Gap, GapSolver, Problem, Progress, Reconstruction
from cryobench.errors import ParameterError
from cryobench.numerics.registration import ilk, tvl1
from cryobench.rng import Rng
from cryobench.solvers.gaps import NO_GRID, fill_gaps, no_gaps
from cryobench.spec import Range


@dataclass(frozen=True)
class Interpolate(GapSolver):
    """Interpolation between the measurements along each axis in turn, for measurements at the points of a grid.

        x(p) = (1 - t) y_q + t y_{q+1},    t = (p - p_q) / (p_{q+1} - p_q)    linear, with y_q at p_q

    cubic is the cubic spline through them (not-a-knot ends). Thick sections and blocks count as values at their
    centres. Pixels beyond the outermost measurements have the value of the nearest. Noise is interpolated, not removed.
    """

    dims = (2, 3)
    any_size = True

    kind: Annotated[Literal["linear", "cubic", "nearest"], "piecewise linear, cubic spline, or nearest"] = "linear"

    def unsupported(self, problem: Problem) -> str | None:
        return NO_GRID if problem.operator.positions is None else None

    def solve(self, problem: Problem, *, rng: Rng, progress: Progress | None = None) -> Reconstruction:
        x, shape = problem.y, problem.operator.image_shape
        for axis, (places, n) in enumerate(zip(problem.operator.positions or (), shape, strict=True)):
            if not torch.equal(places, torch.arange(n, dtype=places.dtype)):
                x = along(weights(self.kind, places.numpy(), np.arange(n)).to(x), x, axis)
        return Reconstruction(x.clone() if x is problem.y else x)

    def fill(self, gap: Gap, *, rng: Rng, progress: Progress | None = None) -> Filled:
        matrix = weights(self.kind, np.array([0.0, 1.0]), np.array(gap.times)).to(gap.pair)
        return Filled(along(matrix, gap.pair[None, None], 0)[0, 0])

    def unfillable(self, times: Sequence[float]) -> str | None:
        return "cubic interpolation takes all sections of a volume" if self.kind == "cubic" else None


@dataclass(frozen=True)
class Flow(GapSolver):
    """Interpolation of sections along the optical flow between measured neighbours, for `slices`, and `decimate` with
    axis=0, of volumes.

    With the flows F01 and F10 of sections 0 and 1 (scikit-image: Zach, Pock and Bischof 2007 for tvl1, Le Besnerais and
    Champagnat 2005 for ilk), section t between them is (Jiang et al. 2018, "Super SloMo", eqs. 1 and 4)

        x_t(p) = (1 - t) x_0(p + F_t0(p)) + t x_1(p + F_t1(p))
        F_t0 = -(1 - t) t F01 + t^2 F10,    F_t1 = (1 - t)^2 F01 - t (1 - t) F10

    with linear interpolation within a section. Flows are computed on intensities mapped to [0, 1] by the minimum and
    maximum of the measurements of each volume. Sections beyond the outermost measured ones are copies of these.
    """

    dims = (3,)

    method: Annotated[Literal["tvl1", "ilk"], "optical_flow_tvl1, or optical_flow_ilk, which is faster"] = "tvl1"
    attachment: Annotated[float, Range(1, 100, log=True), "tvl1: weight of the data; smaller gives smoother flows"] = (
        15.0
    )
    radius: Annotated[int, Range(2, 20, log=True), "ilk: half the side of the window, pixels"] = 7

    def __post_init__(self) -> None:
        if not 0 < self.attachment < np.inf:
            raise ParameterError(f"flow: attachment must be positive, got {self.attachment:g}")
        if self.radius < 1:
            raise ParameterError(f"flow: radius must be at least 1 pixel, got {self.radius}")

    def unsupported(self, problem: Problem) -> str | None:
        return no_gaps(self, problem)

    def solve(self, problem: Problem, *, rng: Rng, progress: Progress | None = None) -> Reconstruction:
        return fill_gaps(self, problem, rng=rng, progress=progress)

    def fill(self, gap: Gap, *, rng: Rng, progress: Progress | None = None) -> Filled:
        from scipy.ndimage import map_coordinates

        first, second = pair = gap.pair.double().cpu().numpy()
        low, high = gap.volume.low, gap.volume.high
        unit = (pair - low) / max(high - low, np.finfo(np.float64).tiny)
        forward, backward = self._flow(*unit), self._flow(*unit[::-1])
        places = np.mgrid[: first.shape[0], : first.shape[1]].astype(np.float64)
        found = gap.pair.new_empty((len(gap.times), *first.shape))
        for section, t in zip(found, gap.times, strict=True):
            to_first = -(1 - t) * t * forward + t**2 * backward
            to_second = (1 - t) ** 2 * forward - t * (1 - t) * backward
            warped_first = map_coordinates(first, places + to_first, order=1, mode="nearest")
            warped_second = map_coordinates(second, places + to_second, order=1, mode="nearest")
            section.copy_(torch.from_numpy((1 - t) * warped_first + t * warped_second))
        return Filled(found)

    def _flow(self, reference: np.ndarray, moving: np.ndarray) -> np.ndarray:
        """The flow v with moving(p + v(p)) = reference(p), [2, H, W]."""
        if self.method == "ilk":
            return ilk(reference, moving, self.radius)
        return tvl1(reference, moving, self.attachment)


def weights(kind: str, places: np.ndarray, targets: np.ndarray) -> torch.Tensor:
    """The matrix [len(targets), len(places)] that interpolates values at increasing `places` at targets, float64.

    Targets beyond the outermost places have the value there.
    """
    from scipy.interpolate import CubicSpline

    n, targets = len(targets), np.clip(targets, places[0], places[-1])
    if len(places) == 1:
        return torch.ones((n, 1), dtype=torch.float64)
    if kind == "cubic":
        return torch.from_numpy(CubicSpline(places, np.eye(len(places)))(targets))
    right = np.clip(np.searchsorted(places, targets, side="right"), 1, len(places) - 1)
    part = (targets - places[right - 1]) / (places[right] - places[right - 1])
    if kind == "nearest":
        part = (part > 0.5).astype(np.float64)  # in the middle, the first
    matrix, rows = np.zeros((n, len(places))), np.arange(n)
    matrix[rows, right - 1], matrix[rows, right] = 1 - part, part
    return torch.from_numpy(matrix)


def along(matrix: torch.Tensor, x: torch.Tensor, axis: int) -> torch.Tensor:
    """Apply a matrix [n, m] along an axis of S of x [B, 1, *S], image by image, so that the rounding does not depend on
    the batch."""
    images = x.movedim(2 + axis, 1).flatten(2)
    result = torch.stack([matrix @ image for image in images])
    rest = [size for i, size in enumerate(x.shape[1:]) if i != 1 + axis]
    return result.unflatten(2, rest).movedim(1, 2 + axis).contiguous()
