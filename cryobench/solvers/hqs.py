"""`hqs`: half-quadratic splitting with the network as denoiser; the posterior mean, and draws about it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch

from cryobench.core import Problem, Progress, Reconstruction, kept_draws, recording
from cryobench.errors import ParameterError
from cryobench.numerics.symmetry import SYMMETRIES
from cryobench.priors.known import KnownPrior
from cryobench.rng import Rng
from cryobench.solvers.curvature import Curvature
from cryobench.solvers.denoising import geometric, splitting
from cryobench.solvers.pinv import minimum_norm
from cryobench.solvers.reverse import Draws, WithDiffusion
from cryobench.spec import ByName, Range


@dataclass(frozen=True)
class Hqs(WithDiffusion):
    """Plug-and-play half-quadratic splitting (Zhang et al. 2021, "Plug-and-Play Image Restoration with Deep Denoiser
    Prior", eqs. 6-8): for a noise level s that is `first` once and then falls from `start` to `end`,

        z = E[x | x + s n = x_k]                                    the network
        x_{k+1} = argmin_x 1/2 ||A x - y||^2 + 1/(2 g) ||x - z||^2

    from the minimum-norm solution x_0, with g = s^2 / (lam sigma^2). The second step is closed form; if y is exact
    (sigma = 0) it is the projection on {x : A x = y}.

    The first level is so high that the input carries no information: z is the mean of the training images, clamped to
    the range left by the noise of the image (`mean_bound`), and unmeasured components start from that mean.
    This matters if y lacks the lowest frequencies: x_0 is 0 there, and the network takes an error far larger than s for
    part of the image. The high level requires a network that predicts the image or v: for a network that predicts the
    noise, z contains the error and the rounding of the prediction multiplied by s.

    At one level s the iteration is proximal gradient descent on the data term plus the Moreau envelope of the prior,
    whose gradient is (x - z) / s^2. It converges slowly where s^2 is small against the prior's variance and y does not
    determine x pixel by pixel. With `momentum` the network is given x_k + b_k (x_k - x_{k-1}) with the b_k of FISTA
    (Beck & Teboulle 2009), restarted where the step turns against the momentum (O'Donoghue & Candes 2015). The fixed
    point has the covariance C + s^2 I in the place of the prior's C, so that `end` limits what can be reached. For a
    Gaussian field both together bring it from 0.5 to 0.05 dB of the exact posterior mean (docs/posteriors.md). A
    network was trained on white noise, which an extrapolated image does not have; the defaults for networks have
    neither.

    With the prior `planes`, a network of images is applied to the planes of volumes across z, y and x in turn.

    If the network was trained on images in all eight rotations and flips, each step transforms x_k by another of them,
    so that errors that are not equivariant average out (Terris et al. 2024, "Equivariant plug-and-play image
    reconstruction").

    `samples` > 1 adds draws of the Gaussian about x whose covariance is the inverse curvature of the posterior that the
    prior implies at noise level `spread` (module `curvature`), and the deviation of each pixel about x. Each draw costs
    `products` evaluations of the prior, with its gradient. x stays the same. The draws are of one mode. Of K draws the
    deviation has a relative error of (2 K)^(-1/2).
    """

    steps: Annotated[int, Range(5, 40, log=True), "network evaluations"] = 14
    first: Annotated[
        float | Literal["auto"],
        "noise level of the first step, on images in [-1, 1]; auto: 100, or 1 if the network predicts the noise",
    ] = "auto"
    start: Annotated[float, Range(0.1, 10, log=True), "noise level of the second step"] = 0.3
    end: Annotated[
        float | Literal["auto"],
        Range(0.01, 0.5, log=True, also=("auto",)),
        "noise level of the last step; auto: 0.1, for a known prior 0.03",
    ] = "auto"
    lam: Annotated[float, Range(0.1, 10, log=True), "weight of the prior where y is noisy"] = 1.0
    momentum: Annotated[bool | Literal["auto"], "extrapolate x by Nesterov's momentum; auto: for a known prior"] = (
        "auto"
    )
    turns: Annotated[bool, "apply another rotation or flip at each step, for priors trained on all of them"] = True
    samples: Annotated[int, ByName(), "draws about x; more than one: their standard deviation"] = 1
    products: Annotated[int, "products with the Jacobian of the prior for a draw"] = 40
    spread: Annotated[
        float | Literal["auto"], "noise level of the prior for the draws; auto: 0.1, for a known prior 0.01"
    ] = "auto"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ParameterError(f"hqs: steps must be at least 1, got {self.steps}")
        for name in ("samples", "products"):
            if getattr(self, name) < 1:
                raise ParameterError(f"hqs: {name} must be at least 1, got {getattr(self, name)}")
        for name in ("first", "start", "end", "lam", "spread"):
            value = getattr(self, name)
            if value != "auto" and not 0 < value < math.inf:
                raise ParameterError(f"hqs: {name} must be positive, got {value:g}")

    @property
    def dims(self) -> tuple[int, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Those of the prior."""
        return self.prior.dims

    def unsupported(self, problem: Problem) -> str | None:
        if len(problem.operator.measurement_shape) != len(problem.operator.domain_shape):
            return "hqs needs measurements with as many axes as the image"
        if self.samples > 1 and len(problem.operator.image_shape) != 2:
            return "hqs has draws of images only; give samples=1 for volumes"
        return super().unsupported(problem)

    @torch.no_grad()
    def solve_in_range(self, problem: Problem, *, rng: Rng, progress: Progress | None = None) -> Reconstruction:
        model = self.model(problem, rng)
        shape = problem.operator.image_shape
        square = len(set(shape)) == 1
        kinds = range(SYMMETRIES) if self.turns and self.prior.trained_with_symmetries and square else [0]
        axes = range(len(shape)) if len(shape) == 3 else [0]
        x = least_squares = minimum_norm(problem)
        levels = self.levels(model.prediction)
        steps = splitting(
            problem, model, least_squares, levels, lam=self.lam, kinds=kinds, axes=axes, momentum=self.accelerated
        )
        total = self.steps + (self.samples * self.products if self.samples > 1 else 0)
        for k, (x, z) in enumerate(steps):
            recording.offer(x, z)
            if progress is not None:
                progress(k + 1, total)
        if self.samples == 1:
            return Reconstruction(x)
        level = self.spread if self.spread != "auto" else 0.01 if self.known else 0.1
        curvature = Curvature(problem, model, x, level, least=0.0 if self.known else 1.0)
        square, kept = torch.zeros_like(x, dtype=torch.float64), []
        for number in range(self.samples):
            apart = curvature.draw(Draws(problem, rng, number).noise(), self.products)
            square += apart.double().square()
            if kept_draws.wanted():
                kept.append(x + apart)
            if progress is not None:
                progress(self.steps + (number + 1) * self.products, total)
        deviation = (square / self.samples).sqrt().to(x.dtype)
        return Reconstruction(x, deviation=deviation, draws=torch.stack(kept, dim=1) if kept else None)

    @property
    def known(self) -> bool:
        """Whether the denoiser of the prior is closed form."""
        return isinstance(self.prior, KnownPrior)

    @property
    def accelerated(self) -> bool:
        """Whether x is extrapolated."""
        return self.known if self.momentum == "auto" else self.momentum

    @property
    def last(self) -> float:
        """The noise level of the last step."""
        if self.end != "auto":
            return self.end
        return 0.03 if self.known else 0.1

    def levels(self, prediction: str) -> list[float]:
        """The noise level of each step for this prediction type of the network; `end` for one step."""
        if self.steps == 1:
            return [self.last]
        first = self.first
        if first == "auto":
            first = max(1.0, self.start) if prediction == "epsilon" else 100.0
        return [first, *geometric(self.start, self.last, self.steps - 1)]
