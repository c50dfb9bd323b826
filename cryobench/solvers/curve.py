"""`curve`: maps along a curve, with known poses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import torch

from cryobench.core import Heterogeneity, HeterogeneitySolver, Problem, Progress, Reconstruction, VolumeModel
from cryobench.core.checkpoints import checkpoint
from cryobench.errors import ParameterError
from cryobench.maps.band import Band
from cryobench.maps.curve import Places, first_curve, fitted_curve
from cryobench.maps.curve_volumes import CurveVolumes
from cryobench.maps.noise import measured_noise
from cryobench.maps.particle_images import particle_images
from cryobench.maps.subspace import Subspace, expected, principal, turned
from cryobench.rng import Rng
from cryobench.solvers.consensus import consensus_maps, halves
from cryobench.solvers.covariance import (
    FULL_STEPS,
    answer,
    boxes_of,
    check_box,
    full_resolution,
    grown,
    low_resolution,
    residuals_of,
    unsupported_box,
)

_LINEAR = 2
"""Dimensions of the subspace that the curve begins with."""
_LINEAR_ITERATIONS = 15
_LARGEST_DEGREE = 8


@dataclass(frozen=True)
class Curve(HeterogeneitySolver):
    """Maps along a curve: a motion of one coordinate, for images with known poses.

        v(t) = mu + sum_m phi_m(t) U_m

    Polynomials phi_m of the place t on the curve, found by expectation-maximisation at low resolution
    (`cryobench/maps/curve.py`) from the first component of `covariance`. The latent of a particle is the mean of its
    posterior of t, which is uniform in [0, 1] before the image is seen. From few images of much noise, the ends of the
    curve fit noise, and latents gather there; without noise they lie at 48 places. A mixture of
    structures has no such curve: use `covariance`.
    """

    degree: Annotated[int, "of the polynomials"] = 3
    decay: Annotated[float, "prior power of each degree relative to that of the one before"] = 0.25
    box: Annotated[int | None, "voxels of the box, even, in which the curve is found; none: half of the side"] = None
    iterations: Annotated[int, "of expectation-maximisation on the curve"] = 20

    def __post_init__(self) -> None:
        if not 1 <= self.degree <= _LARGEST_DEGREE:
            raise ParameterError(f"curve: degree must lie in [1, {_LARGEST_DEGREE}], got {self.degree}")
        if not 0 < self.decay <= 1:
            raise ParameterError(f"curve: decay must be above 0 and at most 1, got {self.decay:g}")
        if self.iterations < 1:
            raise ParameterError(f"curve: iterations must be at least 1, got {self.iterations}")
        check_box("curve", self.box)

    def unsupported(self, problem: Problem) -> str | None:
        few = f"are too few for polynomials of degree {self.degree}; give more images"
        return unsupported_box(problem, "curve", max(self.degree, _LINEAR), self.box, few)

    def solve(self, problem: Problem, *, rng: Rng, progress: Progress | None = None) -> Reconstruction:
        images = particle_images(problem, "curve")
        noise = measured_noise(images.images)
        maps = consensus_maps(images, halves(problem))
        mean = maps.full.double()
        boxes = boxes_of(images.side, self.box)
        linear = len(boxes) * _LINEAR_ITERATIONS
        total = linear + self.iterations + FULL_STEPS

        def watch(done: int) -> None:
            if progress is not None:
                progress(done, total)

        saved = checkpoint().load() or {}
        if "probability" in saved:
            band = Band.of(images, boxes[-1], noise=noise)
            residuals = residuals_of(band, images.side, mean)
            curve, places = Subspace(saved["components"], saved["power"]), Places(saved["probability"])
        else:
            band, residuals, subspace = low_resolution(
                images, mean, noise, _LINEAR, rng.seed, boxes=boxes, iterations=_LINEAR_ITERATIONS, watch=watch
            )
            latents, _ = expected(band, residuals, subspace.components)
            axes, R = principal(subspace.components)
            latents = turned(latents, R)
            curve = first_curve(axes[0] * latents.mean[:, 0].std(), self.degree, self.decay)
            places = Places.ordered(latents)
        before = saved.get("iterations", 0)

        def keep(step: int, curve: Subspace, places: Places, _: float) -> None:
            checkpoint().offer({"iterations": before + step, "components": curve.components, "power": curve.power,
                                "probability": places.probability})  # fmt: skip
            watch(linear + before + step)

        curve, places, _ = fitted_curve(
            band, residuals, curve, places, decay=self.decay, iterations=self.iterations - before, watch=keep
        )
        full = Band.of(images, images.side, noise=noise)
        components = full_resolution(
            full, mean, grown(curve, images.side), places.weights(self.degree),
            lambda n: watch(total - FULL_STEPS + n),
        )  # fmt: skip
        model = CurveVolumes(mean.float(), components.float())
        return answer(problem, images, maps.by_name, Heterogeneity(places.mean[:, None], model), model)

    def volume_model(self, arrays: Mapping[str, torch.Tensor]) -> VolumeModel:
        return CurveVolumes.of(arrays)
