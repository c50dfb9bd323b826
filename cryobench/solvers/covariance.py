"""`covariance`: maps in a linear subspace, with known poses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated

import torch

from cryobench.core import Heterogeneity, HeterogeneitySolver, Problem, Progress, Reconstruction, VolumeModel
from cryobench.core.checkpoints import checkpoint
from cryobench.errors import ParameterError
from cryobench.maps.band import LEAST_SIDE, Band, resized
from cryobench.maps.linear_volumes import LinearVolumes
from cryobench.maps.noise import measured_noise
from cryobench.maps.particle_images import ParticleImages, particle_images
from cryobench.maps.subspace import (
    Latents,
    Normal,
    Subspace,
    expected,
    fitted,
    principal,
    shell_power,
    signal_power,
    turned,
)
from cryobench.numerics.fft import irfftn, rfftn
from cryobench.numerics.shells import shells
from cryobench.rng import Rng, generator
from cryobench.solvers.consensus import consensus_maps, halves, projections, unsupported_particles

_START = 0.05
"""Power of the first components relative to that of the mean map."""
_SMALLEST = 16
"""Voxels of the box in which the subspace is first sought."""
FULL_STEPS = 2
"""Solutions at the full resolution: with a wide prior, from which the power of each shell follows, and with that."""
_WIDE = 0.1
"""Power of the wide prior relative to that of the strongest shell."""


@dataclass(frozen=True)
class Covariance(HeterogeneitySolver):
    """Maps in a linear subspace about the mean: probabilistic principal components of the images, with known poses.

        v_i = mu + sum_k z_{i k} U_k,    z_i ~ N(0, I)

    The subspace of the U_k is found by expectation-maximisation at low resolution (`cryobench/maps/subspace.py`), first
    in a box of 16 voxels. The latent of a particle is the mean of its posterior, in units of the norm of a map.
    """

    dimensions: Annotated[int, "numbers of a latent"] = 4
    box: Annotated[int | None, "voxels of the box, even, in which the subspace is found; none: half of the side"] = None
    iterations: Annotated[int, "of expectation-maximisation in each box"] = 15

    def __post_init__(self) -> None:
        check_dimensions("covariance", self.dimensions, without="consensus")
        if self.iterations < 1:
            raise ParameterError(f"covariance: iterations must be at least 1, got {self.iterations}")
        check_box("covariance", self.box)

    def unsupported(self, problem: Problem) -> str | None:
        return unsupported_box(problem, "covariance", self.dimensions, self.box)

    def solve(self, problem: Problem, *, rng: Rng, progress: Progress | None = None) -> Reconstruction:
        images = particle_images(problem, "covariance")
        noise = measured_noise(images.images)
        maps = consensus_maps(images, halves(problem))
        mean = maps.full.double()
        boxes = boxes_of(images.side, self.box)
        total = len(boxes) * self.iterations + FULL_STEPS

        def watch(done: int) -> None:
            if progress is not None:
                progress(done, total)

        band, residuals, subspace = low_resolution(
            images, mean, noise, self.dimensions, rng.seed, boxes=boxes, iterations=self.iterations, watch=watch
        )
        latents, _ = expected(band, residuals, subspace.components)
        full = Band.of(images, images.side, noise=noise)
        components = full_resolution(
            full, mean, grown(subspace, images.side), latents, lambda n: watch(total - FULL_STEPS + n)
        )
        axes, R = principal(components)
        latents = turned(latents, R)
        model = LinearVolumes(mean.float(), axes.float())
        return answer(problem, images, maps.by_name, Heterogeneity(latents.mean, model), model)

    def volume_model(self, arrays: Mapping[str, torch.Tensor]) -> VolumeModel:
        return LinearVolumes.of(arrays)


def answer(
    problem: Problem,
    images: ParticleImages,
    volumes: dict[str, torch.Tensor],
    many: Heterogeneity,
    model: LinearVolumes,
) -> Reconstruction:
    """The answer of a model that is linear in the weights of its latents: its images are the projections of the map of
    each particle. volumes: those of all particles together."""
    parts = projections(images, torch.cat([model.mean[None], model.components]))
    x = parts[0] + torch.einsum("nk,knij->nij", model.weights(many.latents), parts[1:])
    x = problem.scale.from_file(x[:, None]).to(problem.y)
    return Reconstruction(x, volumes=volumes, heterogeneity=many)


def check_dimensions(solver: str, dimensions: int, *, without: str) -> None:
    """Raise `ParameterError` for latents without numbers. without: the solver that has none."""
    if dimensions < 1:
        raise ParameterError(
            f"{solver}: dimensions is {dimensions}; give dimensions of at least 1; {without} is the solver with none"
        )


def check_box(solver: str, box: int | None) -> None:
    """Raise `ParameterError` for a box that is odd or too small."""
    if box is not None and (box < LEAST_SIDE or box % 2):
        raise ParameterError(f"{solver}: box must be an even number from {LEAST_SIDE} on, got {box}")


def unsupported_box(problem: Problem, what: str, d: int, box: int | None, few: str | None = None) -> str | None:
    """The reason why a subspace of d dimensions cannot be found in a box, or None. few: as `unsupported_side`."""
    reason = unsupported_particles(problem, what, 120 + 8 * d, 64 * (d * d + 8 * d + 20))
    if reason is not None:
        return reason
    side = problem.operator.image_shape[-1]
    if box is not None and box > side:
        return f"{what}: box={box} is larger than the images of {side} pixels; give a smaller one"
    return unsupported_side(problem, what, d, few)


def unsupported_side(problem: Problem, what: str, d: int, few: str | None = None) -> str | None:
    """The reason why images are too small or too few for a subspace of d dimensions, or None. few: what is said of d
    particles or fewer."""
    side = problem.operator.image_shape[-1]
    if side < LEAST_SIDE or side % 2:
        return f"{what} needs images of an even side from {LEAST_SIDE} pixels on, got {side}; give another --size"
    if problem.batch <= d:
        return f"{what}: {problem.batch} particles {few or f'cannot give {d} dimensions; give fewer dimensions'}"
    return None


def boxes_of(side: int, box: int | None) -> list[int]:
    """The boxes in which a subspace is sought, one after the other; the last is `box`, or half of the side."""
    last = box or max(LEAST_SIDE, side // 4 * 2)
    return [_SMALLEST, last] if last > _SMALLEST else [last]


def low_resolution(
    images: ParticleImages,
    mean: torch.Tensor,
    noise: torch.Tensor,
    dimensions: int,
    seed: int,
    *,
    boxes: list[int],
    iterations: int,
    watch: Callable[[int], None],
) -> tuple[Band, torch.Tensor, Subspace]:
    """The last band, its residuals from the mean map [D, D, D], and the subspace found there. It continues from the
    saved state of the solver (`core.checkpoints`). watch: called with the number of iterations done in all boxes."""
    subspace, band, residuals = None, None, mean
    saved = checkpoint().load() or {"box": 0, "done": 0}
    for number, box in enumerate(boxes):
        if number < saved["box"]:
            continue
        band = Band.of(images, box, noise=noise)
        residuals = residuals_of(band, images.side, mean)
        done = 0
        if "components" in saved and number == saved["box"]:
            subspace, done = Subspace(saved["components"], saved["power"]), saved["done"]
        elif subspace is None:
            subspace = first_subspace(resized(mean[None], box)[0], dimensions, seed)
        else:
            subspace = grown(subspace, box)

        def keep(step: int, now: Subspace, _: float, number: int = number, before: int = done) -> None:
            checkpoint().offer({"box": number, "done": before + step, "components": now.components,
                                "power": now.power})  # fmt: skip
            watch(number * iterations + before + step)

        subspace, _ = fitted(band, residuals, subspace, iterations=iterations - done, watch=keep)
    assert band is not None
    assert subspace is not None
    return band, residuals, subspace


def full_resolution(
    band: Band, mean: torch.Tensor, start: Subspace, latents: Latents, watch: Callable[[int], None]
) -> torch.Tensor:
    """The components [d, D, D, D] in the band of the images, given the latents. watch: called `FULL_STEPS` times."""
    normal = Normal(band, residuals_of(band, band.side, mean), latents)
    components, power = start.components, start.power
    power = torch.maximum(power, power.amax(dim=1, keepdim=True) * _WIDE)
    for number in range(FULL_STEPS):
        components, variance = normal.solve(power, components, 4)
        if number < FULL_STEPS - 1:
            power = signal_power(components, variance, power)
        watch(number + 1)
    return components


def residuals_of(band: Band, side: int, mean: torch.Tensor) -> torch.Tensor:
    """r = y - T P mu, complex64 [N, P], of the mean map in its box of `side` voxels."""
    return band.values - band.transfer * band.in_box(side).slices(mean[None])[0]


def first_subspace(mean: torch.Tensor, dimensions: int, seed: int) -> Subspace:
    """Random components [d, b, b, b] with a small part of the spectrum of the mean map [b, b, b]."""
    b = len(mean)
    power = shell_power(mean[None])
    power = (_START * power).expand(dimensions, -1).clamp_min(1e-6 * _START * float(power.max()))
    white = torch.randn((dimensions, b, b, b), generator=generator(seed, "covariance"), dtype=torch.float64)
    shell = shells((b,) * 3)
    factors = torch.cat([power[:, :1], power], dim=1).sqrt()[:, shell.clamp_max(b // 2)] / b**1.5
    spectrum = torch.where(shell < b // 2, rfftn(white, 3) * factors, 0.0)
    return Subspace(irfftn(spectrum, (b,) * 3), power.clone())


def grown(subspace: Subspace, side: int) -> Subspace:
    """The subspace in a larger box; further shells begin with the prior of the last one."""
    more = side // 2 - subspace.power.shape[1]
    power = torch.cat([subspace.power, subspace.power[:, -1:].expand(-1, more)], dim=1)
    return Subspace(resized(subspace.components, side), power)


def coarse_latents(
    images: ParticleImages, mean: torch.Tensor, noise: torch.Tensor, dimensions: int, seed: int, iterations: int = 10
) -> torch.Tensor:
    """The latents of the subspace at low resolution, float64 [N, d], of standard deviation 1 along the first axis.

    mean: the map of all particles, [D, D, D]. noise: power of each ring.
    """
    side = images.side
    box = min(_SMALLEST + _SMALLEST // 2, side // 2 * 2)
    band = Band.of(images, box, noise=noise)
    residuals = residuals_of(band, side, mean.double())
    start = first_subspace(resized(mean.double()[None], box)[0], dimensions, seed)
    subspace, _ = fitted(band, residuals, start, iterations=iterations)
    latents, _ = expected(band, residuals, subspace.components)
    found = turned(latents, principal(subspace.components)[1]).mean
    return found / found[:, 0].std().clamp_min(1e-30)
