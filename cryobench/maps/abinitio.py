"""Maps from images alone: expectation-maximisation from random maps, then refinement of the poses.

1. Starts. From Gaussian random maps with the power of the particle, expectation-maximisation over a grid of 576
   rotations (`maps.expectation`), at low frequencies and with a temperature that falls to 1 as the map grows. Each
   image keeps the mean of its shifts, around which 3 x 3 are compared. The start of the greatest likelihood goes on.
2. Marching. The same over 4608 rotations, up to higher and higher frequencies.
3. Refinement. Each half of the images has its own map. Poses are searched from the grid to a degree
   (`maps.pose_search`), each image against the map of its half; the maps follow by Fourier inversion with the Wiener
   weights of their correlation (`maps.inversion`), which also states up to which frequency the next search compares.
   Below half of the first frequency of the search the maps of both halves are the same, so that they stay in one frame.

With K classes there are K random maps, and the probability of a pose is one of a pose and a class; in the refinement
each image is searched against the map of each class and takes the class of the greatest likelihood.

All of it is a sequence of steps on a state of tensors and numbers, so that it can go on from any step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from cryobench.core.checkpoints import Checkpoint
from cryobench.maps.expectation import ball, expected, maximised, random_map
from cryobench.maps.fsc import shell_correlation
from cryobench.maps.half_maps import HalfMaps
from cryobench.maps.inversion import Maps, default_mask, density, prior_weights, regularised, wiener
from cryobench.maps.likelihood import Band, Whitened, cropped, enlarged
from cryobench.maps.particle_images import ParticleImages
from cryobench.maps.pose_search import Found, Settings, search_whitened
from cryobench.maps.rotations import grid
from cryobench.numerics.fft import irfftn, rfftn
from cryobench.numerics.shells import shells
from cryobench.physics.poses import Poses
from cryobench.rng import generator

State = dict[str, Any]
RADIUS = 0.4
"""Of the ball that maps are within, in sides of the box."""
_START_ORDER = 1
_START = ((6.0, 15), (8.0, 10))
_MARCH = ((8.0, 5), (10.0, 5), (12.0, 5))
"""Highest frequency in cycles per box, and steps."""
_HOTTEST, _COOLED = 10.0, 0.75
"""The first temperature, and the part of the steps of a start after which it is 1."""
_MOST = 7 / 8
"""Highest frequency, of Nyquist's."""
_RELIABLE = 0.143
"""Correlation of the halves below which frequencies are not compared."""


@dataclass(frozen=True)
class Plan:
    """starts: random starts. particles: images that they use, the first ones. classes: K. rounds: of refinement.
    order: of the grids of rotations after the starts, 72 8^order."""

    starts: int = 4
    particles: int = 500
    classes: int = 1
    rounds: int = 4
    order: int = 2


@dataclass(frozen=True, eq=False)
class Solved:
    """maps: of each class, with its halves. found: poses of each image against the map of its class, the best first.
    classes: probability of each class, float64 [N, K]. starts: log-likelihood of each start."""

    maps: list[Maps]
    found: Found
    classes: torch.Tensor
    starts: tuple[float, ...]


def solve(
    images: ParticleImages,
    plan: Plan,
    seed: int,
    *,
    checkpoint: Checkpoint | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Solved:
    """Maps, poses and classes of N images whose poses are not known. Uses no poses of the particles."""
    job = _Job(images, plan, seed)
    checkpoint = checkpoint or Checkpoint(None)
    state = checkpoint.load() or job.beginning()
    total = job.steps
    while state["done"] < total:
        state = {**job.step(state), "done": state["done"] + 1}
        checkpoint.offer(state)
        if progress is not None:
            progress(state["done"], total)
    return job.solved(state)


class _Job:
    """The steps. A state has what the next step needs, and nothing that depends on the time."""

    def __init__(self, images: ParticleImages, plan: Plan, seed: int):
        self._images, self._plan, self._seed = images, plan, seed
        self._white = Whitened.of(images)
        self._side, self._device = images.side, images.images.device
        self._power = self._white.signal_power()
        self._few = slice(0, min(plan.particles, len(images)))
        self._start = [step for step in _START for _ in range(step[1])]
        self._march = [step for step in _MARCH for _ in range(step[1])]
        settings = Settings().for_side(self._side)
        self._lowest = settings.lowest

    @property
    def steps(self) -> int:
        return self._plan.starts * len(self._start) + len(self._march) + self._plan.rounds

    def beginning(self) -> State:
        return {"done": 0, "starts": []}

    def step(self, state: State) -> State:
        """The state after the next step; "done" is that before it."""
        done, each = state["done"], len(self._start)
        if done < self._plan.starts * each:
            return self._of_start(state, *divmod(done, each))
        done -= self._plan.starts * each
        if done < len(self._march):
            return self._of_march(state, done)
        return self._of_refinement(state, done - len(self._march))

    # ------------------------------------------------------------------------------------- expectation-maximisation

    def _of_start(self, state: State, start: int, number: int) -> State:
        highest, _ = self._start[number]
        part = self._white.select(self._few)
        band = self._band(highest)
        if number == 0:
            random = generator(self._seed, "ab initio", start)
            volumes = torch.stack([random_map(self._power, band, RADIUS, random) for _ in range(self._plan.classes)])
            shift = torch.zeros((len(part), 2))
        else:
            volumes, shift = state["volumes"], state["shift"]
        cooling = number / (_COOLED * len(self._start))
        temperature = max(1.0, _HOTTEST + (1 - _HOTTEST) * cooling)
        volumes, shift, likelihood = self._improved(part, band, _START_ORDER, volumes, shift, temperature)
        new = {**state, "volumes": volumes, "shift": shift}
        if number == len(self._start) - 1:
            if likelihood > max(state["starts"], default=-float("inf")):
                new["best"] = volumes
            new["starts"] = [*state["starts"], likelihood]
        return new

    def _of_march(self, state: State, number: int) -> State:
        highest, _ = self._march[number]
        volumes = state["best"] if number == 0 else state["volumes"]
        shift = torch.zeros((len(self._images), 2)) if number == 0 else state["shift"]
        volumes, shift, _ = self._improved(self._white, self._band(highest), self._plan.order, volumes, shift, 1.0)
        return {**state, "volumes": volumes, "shift": shift}

    def _improved(
        self, images: Whitened, band: Band, order: int, volumes: torch.Tensor, shift: torch.Tensor, temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor, float]:
        """One step: the maps, the shift of each image and the log-likelihood, of the maps before the step."""
        volumes = torch.stack([cropped(enlarged(volume, self._side), band.n) for volume in volumes])
        rotations = grid(order)
        apart = self._side / (4 * band.highest)
        along = torch.tensor([-apart, 0.0, apart])
        shifts = shift[:, None] + torch.cartesian_prod(along, along)
        found = expected(images.within(band), volumes, rotations, shifts, temperature)
        mask = ball(band.n, RADIUS)
        improved = torch.stack(
            [maximised(n, d, rotations, band, self._power).cpu() * mask
             for n, d in zip(found.numerator, found.denominator, strict=True)]
        )  # fmt: skip
        moved = found.shift.cpu()
        limit = self._side / 4
        return improved, (moved - moved.mean(dim=0)).clamp(-limit, limit), float(found.log_likelihood.sum())

    def _band(self, highest: float) -> Band:
        return Band.of(self._side, min(highest, _MOST * self._side / 2), self._device)

    # ------------------------------------------------------------------------------------------------- refinement

    def _of_refinement(self, state: State, number: int) -> State:
        K, N = self._plan.classes, len(self._images)
        halves = torch.arange(N) % 2
        if number == 0:
            references = torch.stack([enlarged(volume, self._side) for volume in state["volumes"]])
            references = references[:, None].expand(-1, 2, -1, -1, -1)
            highest = max(self._march[-1][0], self._lowest)
            centre = state["shift"].double()
        else:
            references, highest, centre = state["references"], state["highest"], state["centre"]
        highest = min(max(highest, self._lowest), _MOST * self._side / 2)
        apart = self._side / (4 * self._lowest)
        asked = Settings(self._plan.order, lowest=self._lowest, highest=highest, shift=apart, steps=3)
        settings = asked.for_side(self._side)
        kept = []
        for pair in references:
            parts = [
                search_whitened(
                    self._white.select(rows.to(self._device)).centred(centre[rows].to(self._device)), volume, settings
                )
                for rows, volume in zip(((halves == half).nonzero()[:, 0] for half in (0, 1)), pair, strict=True)
            ]
            kept.append(_interleaved(parts, halves))
        gains = torch.stack([found.gains[:, 0] for found in kept], dim=1).double().cpu()
        classes = gains.argmax(dim=1)
        best = [
            torch.stack([getattr(found, name).cpu()[:, 0] for found in kept], dim=1) for name in ("rotations", "shift")
        ]
        rotations, shift = (each[torch.arange(N), classes] for each in best)
        centre = centre + shift
        new = {"done": state["done"], "starts": state["starts"], "rotations": rotations, "centre": centre,
               "gains": gains}  # fmt: skip
        if number == self._plan.rounds - 1:
            return new
        made = [self._half_maps(rotations, centre, (classes == k).nonzero()[:, 0]) for k in range(K)]
        made = [None if half_maps is None else _references(half_maps, self._lowest) for half_maps in made]
        # the map of a class without images stays as it is
        pairs = [old if now is None else now[0] for old, now in zip(references, made, strict=True)]
        new["references"] = torch.stack(pairs)
        new["highest"] = max((_reliable(now[1]) for now in made if now is not None), default=highest)
        return new

    def _half_maps(self, rotations: torch.Tensor, centre: torch.Tensor, rows: torch.Tensor) -> HalfMaps | None:
        """Of the images of one class; None where a half has none of them."""
        if len(torch.unique(rows % 2)) < 2:
            return None
        particles = self._images.particles
        poses = Poses.of_matrices(rotations[rows], centre[rows] * self._images.pixel_size)
        sums = HalfMaps(self._side, self._images.pixel_size)
        ctf = None if particles.ctf is None else particles.ctf.select(rows)
        sums.add(self._images.images[rows.to(self._device)], poses, ctf, rows % 2)
        return sums

    def solved(self, state: State) -> Solved:
        """The maps at the last poses."""
        gains = state["gains"]
        classes = gains.argmax(dim=1)
        maps = []
        for k in range(self._plan.classes):
            sums = self._half_maps(state["rotations"], state["centre"], (classes == k).nonzero()[:, 0])
            maps.append(_empty(self._side) if sums is None else wiener(sums.sums, sums.kernels))
        best = gains.gather(1, classes[:, None]).float()
        found = Found(state["rotations"][:, None], state["centre"][:, None], best)
        return Solved(maps, found, gains.softmax(dim=1), tuple(state["starts"]))


def _empty(side: int) -> Maps:
    """The maps of a class without images."""
    zero = torch.zeros((side,) * 3)
    return Maps(zero, zero, zero, torch.zeros(side // 2, dtype=torch.float64))


def _interleaved(parts: list[Found], halves: torch.Tensor) -> Found:
    """Those of the images of both halves in the order of the images."""
    joined = Found.join(parts)
    order = torch.cat([(halves == half).nonzero()[:, 0] for half in (0, 1)]).argsort()
    return Found(*(getattr(joined, name)[order.to(joined.gains.device)] for name in ("rotations", "shift", "gains")))


def _references(half_maps: HalfMaps, lowest: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The maps of both halves with the weights of their correlation, [2, D, D, D], the same below a frequency, and the
    correlation of those without weights [D // 2]."""
    sums, kernels = half_maps.sums, half_maps.kernels
    D = sums.shape[-1]
    maps = wiener(sums, kernels)
    densities = [density(kernel) for kernel in kernels]
    mask = ball(D, RADIUS).double()
    fsc = shell_correlation(maps.half1, maps.half2, default_mask(D))
    pair = [regularised(b, C, prior_weights(C, maps.fsc)) * mask for b, C in zip(sums, densities, strict=True)]
    spectra = [rfftn(volume, 3) for volume in (*pair, maps.full.double() * mask)]
    below = shells((D,) * 3) < lowest / 2
    joined = [irfftn(torch.where(below, spectra[2], spectrum), (D,) * 3).float() for spectrum in spectra[:2]]
    return torch.stack(joined), fsc


def _reliable(fsc: torch.Tensor) -> float:
    """The last shell before the correlation falls below the limit, cycles per box: shell i + 1 is number i."""
    below = (fsc < _RELIABLE).nonzero()[:, 0]
    return float(below[0]) if len(below) else float(len(fsc))
