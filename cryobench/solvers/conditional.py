"""`emdiffuse` and `regression`: networks that were trained to remove noise from images, or to predict the sections
between two of a volume.

Images, and volumes as a whole, are on the scale on which they have mean 0 and deviation 1 / `SPREAD`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import torch

from cryobench.core import LinearOperator, Problem, Progress, Reconstruction, Solver, meters
from cryobench.errors import ParameterError
from cryobench.networks.refinement import SAMPLING, respaced, sample
from cryobench.networks.restoring import Restorer
from cryobench.numerics.linalg import standardised
from cryobench.priors.conditional import IMAGE, SPREAD, VELOCITY, Conditional
from cryobench.rng import Rng
from cryobench.solvers.draws import averaged
from cryobench.solvers.interpolate import Interpolate
from cryobench.solvers.pinv import minimum_norm
from cryobench.spec import ByName, Component, Range


@dataclass(frozen=True)
class _WithNetwork(Solver):
    """The network, in windows of the size of its training patches."""

    any_size = True

    model: Annotated[Conditional, Component("priors", folder="conditional"), "the network, such as model=./FOLDER"]
    tile: Annotated[
        int | None, ByName(), "side of the windows of larger images; none: that of the training patches"
    ] = None

    def __post_init__(self) -> None:
        if self.tile is not None and self.tile < 1:
            raise ParameterError(f"tile must be a positive number of pixels, got {self.tile}; give 64 or more")

    @property
    def dims(self) -> tuple[int, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Those of the network."""
        return self.model.dims

    def unsupported(self, problem: Problem) -> str | None:
        operator, gap = problem.operator, self.model.config.gap
        if gap is None:
            trained = self.model.compression
            if (trained is None) != operator.identity:
                need = "identity" if trained is None else "that it was trained for"
                return f"its network {'removes noise' if trained is None else 'inverts an operator'}; it needs the " \
                       f"operator {need}"  # fmt: skip
            if trained is not None and not 0.9 < operator.nominal_compression / trained < 1.1:
                return (f"its network was trained for an operator with C = {trained:.3g}, this one has C = "
                        f"{operator.nominal_compression:.3g}; train another with operator=")  # fmt: skip
        elif not keeps_every(gap, operator):
            return f"its network fills gaps between sections that are {gap} apart; it needs slices:{gap} on a volume"
        wanted = "regression" if self.model.predicts == IMAGE else "emdiffuse"
        if not isinstance(self, {"regression": Regression, "emdiffuse": Emdiffuse}[wanted]):
            return f"its network predicts the {self.model.predicts}; use the solver {wanted}"
        return None

    def _standardised(self, problem: Problem) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What the network restores, with mean 0 and deviation 1, and its mean and deviation: the measured sections of
        a volume, else the image that the floor makes of the measurements."""
        return standardised(problem.y if self.model.config.gap is not None else floor(problem))

    def _restorer(self, model: Conditional, device: torch.device) -> Restorer:
        """A network on a device."""
        velocity = model.predicts == VELOCITY
        return Restorer(model.load(device), self.tile or model.patch, velocity=velocity)

    def _mean(self, model: Conditional, condition: torch.Tensor, place: torch.Tensor | None) -> torch.Tensor:
        """What a regression network predicts."""
        with meters.calling(meters.NETWORK, condition):
            return self._restorer(model, condition.device).image(condition, place)


@dataclass(frozen=True)
class Regression(_WithNetwork):
    """x = m + s f((y - m) / s), with m and s the mean and deviation of the image y and f a network of the architecture
    of `emdiffuse` that was trained with the squared error: the control of `emdiffuse`.

    f is trained by `cryobench train --objective regression`: for `identity`; with operator= for that operator, where y
    is what its floor reconstructs; or with gap=R for `slices:R` of volumes, where y are the measured sections, which
    are kept. Larger images than the training patches are evaluated in overlapping windows, blended with raised-cosine
    weights.
    """

    @torch.no_grad()
    def solve(self, problem: Problem, *, rng: Rng, progress: Progress | None = None) -> Reconstruction:
        y, mean, deviation = self._standardised(problem)
        if self.model.config.gap is None:
            x = self._mean(self.model, y / SPREAD, None)
        else:
            gaps = Gaps(y / SPREAD, self.model, problem.operator.image_shape[0])
            x = gaps.whole()
            for done, (condition, place, missing) in enumerate(gaps):
                x[:, :, missing] = gaps.sections(self._mean(self.model, condition, place))
                if progress is not None:
                    progress(done + 1, len(gaps))
        if progress is not None:
            progress(1, 1)
        return Reconstruction(x.mul_(SPREAD * deviation).add_(mean))


@dataclass(frozen=True)
class Emdiffuse(_WithNetwork):
    """Samples of the image without noise by conditional diffusion (Lu et al. 2024, EMDiffuse), or of the sections
    between those of a volume.

    Sampling follows the 1000 published noise levels, or fewer from noise to the image, from which betas are computed
    again; the estimate of every step is clamped. Few steps make the samples too alike: see docs/emdiffuse.md. With
    `samples` > 1 the result is their mean, and their standard deviation is returned too. The network is trained by
    `cryobench train --objective conditional`: for `identity`, with operator= for that operator, or with gap=R for
    `slices:R` of volumes, whose measured sections are kept. One that was trained with mean= samples what its regression
    leaves.
    Larger images than the training patches are evaluated in overlapping windows, blended at every step.
    """

    samples: Annotated[int, ByName(), "images to draw; more than one: their mean and standard deviation"] = 1
    steps: Annotated[int, Range(5, 1000, log=True), "network evaluations for each sample, at most 1000"] = 20
    spacing: Annotated[
        Literal["log", "linear"], "of the noise levels of less than 1000 steps: log, or every n-th published level"
    ] = "log"
    shared: Annotated[
        bool, ByName(), "of volumes: the sections of all gaps from the same noise, or each from its own"
    ] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples < 1:
            raise ParameterError(f"emdiffuse: samples must be at least 1, got {self.samples}")
        respaced(SAMPLING.gammas(), self.steps)  # raises for an impossible number

    @torch.no_grad()
    def solve(self, problem: Problem, *, rng: Rng, progress: Progress | None = None) -> Reconstruction:
        y, mean, deviation = self._standardised(problem)
        if self.model.config.gap is None:
            x, spread = self._drawn(y / SPREAD, None, rng, "", progress)
        else:
            gaps = Gaps(y / SPREAD, self.model, problem.operator.image_shape[0])
            x, spread = gaps.whole(), None if self.samples == 1 else y.new_zeros(problem.image_batch_shape)
            for k, (condition, place, missing) in enumerate(gaps):

                def report(done: int, steps: int, k: int = k) -> None:
                    if progress is not None:
                        progress(k * steps + done, len(gaps) * steps)

                average, own = self._drawn(condition, place, rng, "" if self.shared else f" gap {k}", report)
                x[:, :, missing] = gaps.sections(average)
                if spread is not None and own is not None:
                    spread[:, :, missing] = gaps.sections(own)
        x = x.mul_(SPREAD).mul_(deviation).add_(mean)
        if spread is None:
            return Reconstruction(x)
        return Reconstruction(x, deviation=spread.mul_(SPREAD).mul_(deviation), samples=self.samples)

    def _drawn(
        self, condition: torch.Tensor, place: torch.Tensor | None, rng: Rng, purpose: str, progress: Progress | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The mean of the samples and their standard deviation, if there are several, [B, images, H, W].

        condition: [B, C, H, W], with the B images of `rng` in turn where there are several of each. purpose: of the
        noise, which those of one image share unless it is a text.
        """
        restorer, images = self._restorer(self.model, condition.device), self.model.config.images
        levels = respaced(SAMPLING.gammas(), self.steps, self.spacing)
        regression = self.model.mean
        offset = None if regression is None else self._mean(regression, condition, place)
        each = len(condition) // len(rng.image_ids)

        def predict(x: torch.Tensor, gamma: float) -> torch.Tensor:
            with meters.calling(meters.NETWORK, x):
                return restorer.noise(condition, x, gamma, place)

        def draw(number: int, report: Progress) -> torch.Tensor:
            stream = rng.stream(f"conditional {number}{purpose}")
            shape = (1 if self.shared else each, images, *condition.shape[2:])

            def normal() -> torch.Tensor:
                drawn = stream.normal(shape, dtype=condition.dtype, device=condition.device)
                return drawn.expand(-1, each, *shape[1:]).flatten(0, 1)

            x = sample(predict, normal, levels, report)
            return x if offset is None else x.mul_(self.model.scale).add_(offset)

        average, spread = averaged(draw, self.samples, progress)
        return average.to(condition.dtype), None if spread is None else spread.to(condition.dtype)


class Gaps:
    """The gaps between measured sections y [B, 1, D', H, W] of a volume of `depth` sections: for each, the conditions
    [n, 2, H, W] of a network, their places [n] (None for a network that predicts all sections together) and the missing
    sections, where n is B, or B times R - 1 places."""

    def __init__(self, y: torch.Tensor, model: Conditional, depth: int):
        config = model.config
        self._y, self._depth, self._R, self._together = y, depth, config.gap, config.places == 1

    def __len__(self) -> int:
        return self._y.shape[2] - 1

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor | None, slice]]:
        for k in range(len(self)):
            missing = slice(k * self._R + 1, (k + 1) * self._R)
            ends = self._y[:, 0, k : k + 2]
            if self._together:
                yield ends, None, missing
            else:
                places = torch.arange(self._R - 1, device=ends.device)
                yield ends.repeat_interleave(len(places), dim=0), places.repeat(len(ends)), missing

    def whole(self) -> torch.Tensor:
        """The volume [B, 1, D, H, W] with the measured sections, and copies of the last after it."""
        places = torch.arange(self._depth, device=self._y.device) // self._R
        return self._y[:, :, places]

    def sections(self, found: torch.Tensor) -> torch.Tensor:
        """What a network predicted for one gap as sections of each volume, [B, 1, R - 1, H, W]."""
        return found.reshape(len(self._y), 1, self._R - 1, *found.shape[2:])


def floor(problem: Problem) -> torch.Tensor:
    """What the floor of tables makes of the measurements, [B, C, *S]: linear interpolation of pixels, else the
    least-norm solution."""
    if problem.operator.identity:
        return problem.y
    if problem.operator.positions is None:
        return minimum_norm(problem)
    return Interpolate().solve(problem, rng=Rng(0, [""] * problem.batch)).x


def keeps_every(step: int, operator: LinearOperator) -> bool:
    """Whether an operator keeps every `step`-th section of a volume as it is, and all of its pixels."""
    grid, shape = operator.positions, operator.image_shape
    if grid is None or len(shape) != 3:
        return False
    wanted = (range(0, shape[0], step), range(shape[1]), range(shape[2]))
    return all(places.tolist() == list(each) for places, each in zip(grid, wanted, strict=True))
