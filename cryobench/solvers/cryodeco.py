"""`cryodeco`: maps of a network of frequency and latent from images alone: search, then descent on poses too.

As in DRGN-AI (Levy et al. 2025, Nat. Methods 22:1486) and CryoDECO, in three phases:

1. Poses of all images for one map, ab initio (`maps.abinitio`).
2. Searches. The network is fitted with these poses, as `hypervolume` does; the latents fall into groups, and the poses
   of the images of each group are searched around the kept ones against its map. This is done `searches` times.
3. Descent. Poses, latents and network are found together by Adam. The pose of a particle is exp(w) A and t + s, with
   the pose (A, t) of the search and six numbers w, s of its own.

With Hartley transforms h_i of the images turned back by t + s, whitened by the noise, the loss of a batch is

    mean_i [ 1/2 sum_k |h_i(k) - C_i(k) (M + H(.; z_i))(A_i^T (k, 0))|^2 + prior / 2 |z_i|^2 ]

with M the transform of the map of all images at the poses of the last search, and H the network
(`networks.hypervolume`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import torch
from torch import nn

from cryobench.core import Heterogeneity, HeterogeneitySolver, Problem, Progress, Reconstruction, VolumeModel
from cryobench.core.checkpoints import checkpoint
from cryobench.errors import ParameterError
from cryobench.maps.abinitio import Plan, solve
from cryobench.maps.likelihood import Whitened
from cryobench.maps.network_volumes import NetworkVolumes
from cryobench.maps.noise import measured_noise
from cryobench.maps.particle_images import ParticleImages
from cryobench.maps.pose_search import Found, Settings, search_whitened
from cryobench.maps.rotations import of_vectors
from cryobench.networks.hypervolume import SHAPES, Hypervolume, Slices
from cryobench.physics.poses import Poses
from cryobench.physics.projection import Projector
from cryobench.rng import Rng, generator
from cryobench.solvers.abinitio import seen, sought_images, unsupported_images
from cryobench.solvers.consensus import consensus_maps
from cryobench.solvers.covariance import check_dimensions, coarse_latents, unsupported_side
from cryobench.solvers.hypervolume import decay, drawn_frequencies, envelope_of, network_images, random_latents

_BATCH = 32
_SEARCHED_ORDER = 3
"""The grid whose spacing, 7.5 degrees, a search around kept poses begins with."""


@dataclass(frozen=True)
class CryoDeco(HeterogeneitySolver):
    """Maps by a network of frequency and latent, and poses, from images alone, as in DRGN-AI and CryoDECO.

    Ab initio poses for one map; searches of poses against maps of groups of latents; then descent on network, latents
    and poses. The first phase takes all images to show about one shape: for a mixture of structures that are not alike,
    `abinitio` with classes. Latents begin with those of the subspace model at low resolution (`covariance`) or at
    random.
    """

    seeks_poses = True

    dimensions: Annotated[int, "numbers of a latent"] = 4
    network: Annotated[Literal["tiny", "small", "published"], "3 layers of 128 or 256, or 8 of 512"] = "tiny"
    starts: Annotated[int, "random starts of the first phase"] = 4
    searches: Annotated[int, "searches of poses against maps of the network"] = 1
    groups: Annotated[int, "groups of latents, each with a map that its images are searched against"] = 8
    fit: Annotated[int, "passes over the images before each search"] = 10
    descent: Annotated[int, "passes over the images with poses free"] = 20
    rate: Annotated[float, "learning rate of the network"] = 1e-3
    latent_rate: Annotated[float, "learning rate of the latents"] = 1e-2
    pose_rate: Annotated[float, "learning rate of the poses, radians; 10 times as much in pixels"] = 1e-3
    init: Annotated[Literal["subspace", "random"], "first latents: of covariance at low resolution, or random"] = (
        "subspace"
    )
    part: Annotated[float, "of the frequencies of an image in a step, drawn at random"] = 0.25
    prior: Annotated[float, "weight of the prior of latents"] = 1.0
    order: Annotated[int, "of the grids of rotations of the first phase, after its starts"] = 2
    ctf: Annotated[bool, "the images were taken through CTFs, which the table states; false: without"] = True

    def __post_init__(self) -> None:
        check_dimensions("cryodeco", self.dimensions, without="abinitio")
        for name, least in (("starts", 1), ("searches", 0), ("groups", 1), ("fit", 1), ("descent", 0)):
            if getattr(self, name) < least:
                raise ParameterError(f"cryodeco: {name} must be at least {least}, got {getattr(self, name)}")
        for name in ("rate", "latent_rate", "pose_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise ParameterError(f"cryodeco: {name} must be positive, got {getattr(self, name):g}")
        if not 0 < self.part <= 1:
            raise ParameterError(f"cryodeco: part must be above 0 and at most 1, got {self.part:g}")
        if not 1 <= self.order <= 3:
            raise ParameterError(f"cryodeco: order must be 1 to 3, got {self.order}")
        if not 0 <= self.prior < math.inf:
            raise ParameterError(f"cryodeco: prior must be zero or more, got {self.prior:g}")

    def unsupported(self, problem: Problem) -> str | None:
        reason = unsupported_images(problem, "cryodeco", self.ctf)
        reason = reason or unsupported_side(problem, "cryodeco", self.dimensions)
        if reason is None and problem.batch < max(self.groups, 2):
            return f"cryodeco: {problem.batch} particles for {self.groups} groups; give at least {max(self.groups, 2)}"
        return reason

    def solve(self, problem: Problem, *, rng: Rng, progress: Progress | None = None) -> Reconstruction:
        images = sought_images(problem, "cryodeco", self.ctf)
        job = _Job(self, images, rng.seed)
        job.run(progress)
        rotations, shift, latents = job.poses_and_latents()
        x = seen(images, job.mean, rotations, shift).cpu()
        x += network_images(job.decoder, images, rotations, shift, latents)
        model = NetworkVolumes(job.mean, job.decoder.cpu())
        many = Heterogeneity(latents.double(), model, rotations, shift * images.pixel_size, job.starts)
        return Reconstruction(problem.scale.from_file(x[:, None]).to(problem.y), heterogeneity=many)

    def volume_model(self, arrays: Mapping[str, torch.Tensor]) -> VolumeModel:
        return NetworkVolumes.of(arrays)


class _Job:
    """Poses, latents, network and optimisers, and the phase and step that they have reached.

    Phases 0, ..., searches - 1 are fits that end with a search; the last one is the descent.
    """

    def __init__(self, recipe: CryoDeco, images: ParticleImages, seed: int):
        self._recipe, self._images, self._seed = recipe, images, seed
        self.device = images.images.device
        self._noise = measured_noise(images.images)
        self._batches = math.ceil(len(images) / _BATCH)
        self.starts: tuple[float, ...] = ()

    def run(self, progress: Progress | None) -> None:
        recipe, kept = self._recipe, checkpoint()
        phases = [recipe.fit] * recipe.searches + [recipe.descent]
        total = sum(phases) * self._batches
        state = kept.load()
        if state is None or "phase" not in state:
            first = solve(self._images, Plan(recipe.starts, order=recipe.order), self._seed, checkpoint=kept)
            self.starts = first.starts
            self._begin_phase(0, first.found.rotations[:, 0].cpu(), first.found.shift[:, 0].cpu(), None)
        else:
            self._restore(state)
        while self._phase < len(phases):
            steps = phases[self._phase] * self._batches
            while self._step < steps:
                self._advance(steps, free=self._phase == recipe.searches)
                self._step += 1
                kept.offer(self._state())
                if progress is not None:
                    progress(sum(phases[: self._phase]) * self._batches + self._step, total)
            rotations, shift, latents = self.poses_and_latents()
            if self._phase < recipe.searches:
                rotations, shift = self._searched(rotations, shift, latents)
            self._next(rotations, shift)

    # ------------------------------------------------------------------------------------------------- phases

    def _begin_phase(
        self, phase: int, rotations: torch.Tensor, shift: torch.Tensor, network: Hypervolume | None
    ) -> None:
        """Set the poses, and the map of all images at them."""
        images = self._images
        self._phase, self._step = phase, 0
        self._rotations, self._shift = rotations.double(), shift.double()
        particles = replace(images.particles, poses=Poses.of_matrices(rotations, shift * images.pixel_size))
        posed = ParticleImages(images.images.cpu(), particles)
        self.mean = consensus_maps(posed, torch.arange(len(images)) % 2).full.float()
        self._prepare()
        if network is None:
            self._table.weight.data.copy_(self._first_latents(posed))

    def _first_latents(self, posed: ParticleImages) -> torch.Tensor:
        d = self._recipe.dimensions
        if self._recipe.init == "random":
            return random_latents(len(posed), d, self._seed)
        return coarse_latents(posed, self.mean, self._noise, d, self._seed).float()

    def _prepare(self) -> None:
        """Network, tables and optimisers, as they begin, for the map of all images."""
        recipe, images = self._recipe, self._images
        N, D = len(images), images.side
        self._slices = Slices.of(images.images.cpu(), images.transfer(), self._noise).to(self.device)
        self._projector = Projector(self.mean.to(self.device))
        shape, envelope = SHAPES[recipe.network], envelope_of(self.mean)
        self.decoder = Hypervolume(D, recipe.dimensions, shape, envelope=envelope, seed=self._seed).to(self.device)
        self._table, self._turns, self._moves = (
            nn.Embedding.from_pretrained(torch.zeros((N, width), device=self.device), freeze=False, sparse=True)
            for width in (recipe.dimensions, 3, 2)
        )
        sparse = torch.optim.SparseAdam
        self._optimisers: list[tuple[torch.optim.Optimizer, float]] = [
            (torch.optim.Adam(self.decoder.parameters()), recipe.rate),
            (sparse(list(self._table.parameters())), recipe.latent_rate),
            (sparse(list(self._turns.parameters())), recipe.pose_rate),
            (sparse(list(self._moves.parameters())), 10 * recipe.pose_rate),
        ]

    def _next(self, rotations: torch.Tensor, shift: torch.Tensor) -> None:
        """The next phase: with the latents and the network of this one, unless it was the last."""
        if self._phase == self._recipe.searches:
            self._phase += 1
            self._final = rotations, shift
            return
        table, network = self._table.weight.detach().clone(), self.decoder
        weights = {name: value for name, value in network.state_dict().items() if name != "envelope"}
        self._begin_phase(self._phase + 1, rotations, shift, network)
        self._table.weight.data.copy_(table)
        self.decoder.load_state_dict(weights, strict=False)

    @torch.no_grad()
    def _searched(
        self, rotations: torch.Tensor, shift: torch.Tensor, latents: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Poses around the kept ones against the map of the group of each image."""
        from scipy.cluster.vq import kmeans2

        values = latents.double().numpy()
        draws: Any = {"seed": self._seed % 2**32}  # its older name, which the stubs lack
        centres, group = kmeans2(values, self._recipe.groups, minit="++", **draws)
        settings = Settings(order=_SEARCHED_ORDER).for_side(self._images.side)
        settings = replace(settings, shift=1.0, steps=2, kept=4)
        white = Whitened.of(self._images)
        rotations, shift = rotations.clone(), shift.clone()
        for number, centre in enumerate(centres):
            rows = torch.from_numpy(group == number).nonzero()[:, 0]
            if not len(rows):
                continue
            volume = self.mean + self.decoder.volume(torch.from_numpy(centre).float())
            start = Found(rotations[rows][:, None], shift[rows][:, None], torch.zeros((len(rows), 1)))
            found = search_whitened(white.select(rows.to(self.device)), volume, settings, start=start)
            rotations[rows], shift[rows] = found.rotations[:, 0].cpu(), found.shift[:, 0].cpu()
        return rotations, shift

    # ------------------------------------------------------------------------------------------------- steps

    def _advance(self, steps: int, free: bool) -> None:
        recipe = self._recipe
        epoch, number = divmod(self._step, self._batches)
        order = torch.randperm(len(self._images), generator=generator(self._seed, "order", self._phase, epoch))
        rows = order[number * _BATCH : (number + 1) * _BATCH]
        draws = generator(self._seed, "step", self._phase, self._step)
        frequencies = len(self._slices.k)
        some, sign = drawn_frequencies(frequencies, recipe.part, draws)
        where = rows.to(self.device)
        z = self._table(where)
        rotations, shift = self._rotations[rows].float().to(self.device), self._shift[rows].float().to(self.device)
        if free:
            rotations, shift = of_vectors(self._turns(where)) @ rotations, shift + self._moves(where)
        errors = self._errors(self._slices.select(where).points(some.to(self.device)), rotations, shift, z, sign)
        loss = (errors * frequencies + recipe.prior * 0.5 * z.square().sum(dim=1)).mean() / frequencies
        active = self._optimisers if free else self._optimisers[:2]
        for optimiser, rate in active:
            optimiser.zero_grad()
            optimiser.param_groups[0]["lr"] = decay(self._step, steps) * rate
        loss.backward()
        for optimiser, _ in active:
            optimiser.step()

    def _errors(
        self, slices: Slices, rotations: torch.Tensor, shift: torch.Tensor, z: torch.Tensor, sign: float
    ) -> torch.Tensor:
        """The mean over frequencies of |h - C (M + H)|^2 of each image, [n]; noise alone gives 1."""
        k = slices.k
        of_mean = self._projector.values(k * self._images.side, rotations)
        predicted = of_mean.real - sign * of_mean.imag + self.decoder(sign * k @ rotations[:, :2], z[:, None])
        phase = (2 * torch.pi) * (shift @ k.T)
        turned = slices.values * torch.polar(torch.ones_like(phase), phase)
        return (turned.real - sign * turned.imag - slices.transfer * predicted).square().mean(dim=1)

    # ------------------------------------------------------------------------------------------------- state

    @torch.no_grad()
    def poses_and_latents(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Rotations [N, 3, 3] and shifts [N, 2] in pixels, float64, and latents [N, d], all on the CPU."""
        turns, moves = self._turns.weight.double().cpu(), self._moves.weight.double().cpu()
        latents = self._table.weight.detach().cpu().clone()
        if self._phase > self._recipe.searches:
            return *self._final, latents
        return of_vectors(turns) @ self._rotations, self._shift + moves, latents

    def _modules(self) -> dict[str, nn.Module]:
        return {"decoder": self.decoder, "table": self._table, "turns": self._turns, "moves": self._moves}

    def _state(self) -> dict[str, Any]:
        modules = {name: module.state_dict() for name, module in self._modules().items()}
        return {
            "phase": self._phase, "step": self._step, "starts": list(self.starts), "rotations": self._rotations,
            "shift": self._shift, "mean": self.mean, "optimisers": [each.state_dict() for each, _ in self._optimisers],
            **modules,
        }  # fmt: skip

    def _restore(self, state: Mapping[str, Any]) -> None:
        self._phase, self._step, self.starts = state["phase"], state["step"], tuple(state["starts"])
        self._rotations, self._shift, self.mean = state["rotations"], state["shift"], state["mean"]
        self._prepare()
        for name, module in self._modules().items():
            module.load_state_dict(state[name])
        for (optimiser, _), saved in zip(self._optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
