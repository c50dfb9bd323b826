"""`hypervolume`: a network of frequency and latent, fitted to images with known poses as cryoDRGN's decoder is.

The network is the difference from the consensus map (`mean=consensus`), or the whole map (`mean=none`, as published).
With Hartley transforms h_i of the images less those of the mean, whitened by the noise (`networks.hypervolume`), the
loss of a batch is

    mean_i [ 1/2 sum_k |h_i(k) - C_i(k) H(A_i^T (k, 0); z_i)|^2 + prior / 2 |z_i|^2 ]

over a random part of the frequencies, scaled to all of them: minus the log of the likelihood times a Gaussian prior of
the latents. Latents are a table, of which a step changes the rows of its batch, or come from an encoder (Zhong et al.
2021, Nat. Methods 18:176): then they are drawn from the Gaussian that it gives, with the divergence from N(0, I) in the
place of the prior. A table begins with the latents of `covariance` at low resolution, with small random numbers, or
with the principal components of the features of a registered encoder (`cryobench.core.Encoder`), each of variance 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import nn

from cryobench.core import Encoder, Heterogeneity, HeterogeneitySolver, Problem, Progress, Reconstruction, VolumeModel
from cryobench.core.checkpoints import checkpoint
from cryobench.errors import ParameterError
from cryobench.maps.network_volumes import NetworkVolumes
from cryobench.maps.noise import measured_noise
from cryobench.maps.particle_images import ParticleImages, particle_images
from cryobench.maps.subspace import shell_power
from cryobench.networks.hypervolume import SHAPES, Hypervolume, Slices, predicted_images, squared_errors
from cryobench.numerics.principal import unit_scores
from cryobench.rng import Rng, generator
from cryobench.solvers.consensus import consensus_maps, halves, projections, unsupported_particles
from cryobench.solvers.covariance import check_dimensions, coarse_latents, unsupported_side
from cryobench.spec import Component

_BYTES_PER_PIXEL, _BYTES_PER_VOXEL = 80, 1200
_LEAST_ENVELOPE = 1e-3
"""Smallest envelope of a shell, relative to the largest."""
_LAST_RATE = 0.05
"""Learning rate of the last step, relative to the first."""
_ENCODED = 16
"""Cycles per box up to which an encoder sees images."""
_BETAS, _EPSILON = (0.9, 0.999), 1e-8
"""Of Adam."""
_FIRST_LATENTS = 0.1
"""Standard deviation of random latents."""


@dataclass(frozen=True)
class HypervolumeSolver(HeterogeneitySolver):
    """Maps by a neural network of frequency and latent, for images with known poses, as in cryoDRGN and CryoDECO.

        min mean_i (1/2 sum_k |h_i(k) - C_i(k) H(R_i (k, 0); z_i)|^2 + prior/2 |z_i|^2)

    H: the network, h_i: the transform of image i, C_i: its CTF, R_i: its rotation. A latent z_i of each particle and
    the network are found by Adam. `network=published`, `mean=none`, `rate=1e-4`, `part=1` and `latents=encoder` are the
    settings of cryoDRGN; the defaults are for two cores.
    """

    dimensions: Annotated[int, "numbers of a latent"] = 4
    network: Annotated[Literal["tiny", "small", "published"], "3 layers of 128 or 256, or 8 of 512"] = "tiny"
    epochs: Annotated[int, "passes over the images"] = 10
    rate: Annotated[float, "learning rate of the network"] = 1e-3
    latent_rate: Annotated[float, "learning rate of the table of latents"] = 1e-2
    latents: Annotated[Literal["table", "encoder"], "free numbers, or a network of the image"] = "table"
    init: Annotated[
        Literal["subspace", "random", "encoder"],
        "of the table: those of covariance at low resolution, random, or principal components of features",
    ] = "subspace"
    mean: Annotated[Literal["consensus", "none"], "the map that the network is added to"] = "consensus"
    batch: Annotated[int, "particles of a step"] = 32
    part: Annotated[float, "of the frequencies of an image in a step, drawn at random"] = 0.25
    prior: Annotated[float, "weight of the prior of latents"] = 1.0
    encoder: Annotated[
        Encoder | None, Component("encoders", folder="vit"), "what gives the features of init=encoder, such as pca"
    ] = None

    def __post_init__(self) -> None:
        check_dimensions("hypervolume", self.dimensions, without="consensus")
        for name in ("epochs", "batch"):
            if getattr(self, name) < 1:
                raise ParameterError(f"hypervolume: {name} must be at least 1, got {getattr(self, name)}")
        for name in ("rate", "latent_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise ParameterError(f"hypervolume: {name} must be positive, got {getattr(self, name):g}")
        if not 0 < self.part <= 1:
            raise ParameterError(f"hypervolume: part must be above 0 and at most 1, got {self.part:g}")
        if not 0 <= self.prior < math.inf:
            raise ParameterError(f"hypervolume: prior must be zero or more, got {self.prior:g}")
        if self.init == "encoder" and self.encoder is None:
            raise ParameterError("hypervolume: init=encoder needs an encoder; give one, such as encoder=pca")
        if self.init != "encoder" and self.encoder is not None:
            raise ParameterError(
                f"hypervolume: an encoder is given, but init is {self.init}; give init=encoder, or leave encoder out"
            )
        if self.init == "encoder" and self.latents == "encoder":
            raise ParameterError(
                "hypervolume: init=encoder begins a table, but latents=encoder has none; give latents=table, or leave "
                "init out"
            )

    def unsupported(self, problem: Problem) -> str | None:
        reason = unsupported_particles(problem, "hypervolume", _BYTES_PER_PIXEL, _BYTES_PER_VOXEL)
        return reason or unsupported_side(problem, "hypervolume", self.dimensions)

    def solve(self, problem: Problem, *, rng: Rng, progress: Progress | None = None) -> Reconstruction:
        images = particle_images(problem, "hypervolume")
        device = problem.y.device
        noise = measured_noise(images.images)
        maps = consensus_maps(images, halves(problem))
        if self.mean == "none":
            mean, projected = torch.zeros_like(maps.full), torch.zeros(())
        else:
            mean, projected = maps.full, projections(images, maps.full[None])[0]
        slices = Slices.of(images.images.cpu() - projected, images.transfer(), noise).to(device)
        first = self._first(images, maps.full, noise, rng.seed)
        fit = _Fit(self, images, slices, envelope_of(maps.full), first, rng.seed, device)
        fit.run(progress)
        latents = fit.latents()
        x = projected + network_images(fit.decoder, images, fit.rotations, fit.shift, latents)
        x = problem.scale.from_file(x[:, None]).to(problem.y)
        model = NetworkVolumes(mean.float(), fit.decoder.cpu())
        return Reconstruction(x, volumes=maps.by_name, heterogeneity=Heterogeneity(latents.double().cpu(), model))

    def volume_model(self, arrays: Mapping[str, torch.Tensor]) -> VolumeModel:
        return NetworkVolumes.of(arrays)

    def _first(self, images: ParticleImages, mean: torch.Tensor, noise: torch.Tensor, seed: int) -> torch.Tensor:
        """The latents that the table begins with, [N, d]."""
        if self.init == "random" or self.latents == "encoder":
            return random_latents(len(images), self.dimensions, seed)
        if self.encoder is not None:
            transfer = images.transfer()
            transfer = None if transfer is None else transfer.to(images.images.device)
            found = self.encoder.features(images.images, transfer, images.pixel_size)
            if found.shape[1] < self.dimensions:
                raise ParameterError(
                    f"hypervolume: the encoder gives {found.shape[1]} features of an image, fewer than dimensions="
                    f"{self.dimensions}; give fewer dimensions, or another encoder"
                )
            return unit_scores(found, self.dimensions).float().cpu()
        return coarse_latents(images, mean, noise, self.dimensions, seed).float()


class _Fit:
    """The network, latents and optimisers, and the step that they have reached."""

    def __init__(
        self,
        recipe: HypervolumeSolver,
        images: ParticleImages,
        slices: Slices,
        envelope: torch.Tensor,
        first: torch.Tensor,
        seed: int,
        device: torch.device,
    ):
        self.recipe, self.slices, self.seed, self.device = recipe, slices, seed, device
        poses = images.particles.poses
        self.rotations = poses.matrices.float().to(device)
        self.shift = (poses.shift / images.pixel_size).float().to(device)
        d, count = recipe.dimensions, len(images)
        self.decoder = Hypervolume(images.side, d, SHAPES[recipe.network], envelope=envelope, seed=seed).to(device)
        self.encoder = self.table = None
        if recipe.latents == "encoder":
            self._low = (slices.k.norm(dim=1) * images.side < _ENCODED).nonzero()[:, 0]
            self.encoder = _Encoder(2 * len(self._low), d, SHAPES[recipe.network].width, seed).to(device)
            parameters = [*self.decoder.parameters(), *self.encoder.parameters()]
        else:
            self.table = _Table(first).to(device)
            parameters = list(self.decoder.parameters())
        self.optimiser = torch.optim.Adam(parameters, lr=recipe.rate)
        self.step = 0
        self.batches = math.ceil(count / recipe.batch)
        self.steps = self.batches * recipe.epochs

    def run(self, progress: Progress | None) -> None:
        state = checkpoint().load()
        if state is not None:
            self._restore(state)
        order = None
        while self.step < self.steps:
            epoch, number = divmod(self.step, self.batches)
            if number == 0 or order is None:
                order = torch.randperm(len(self.slices), generator=generator(self.seed, "order", epoch))
            rows = order[number * self.recipe.batch : (number + 1) * self.recipe.batch]
            self._advance(rows.to(self.device))
            self.step += 1
            checkpoint().offer(self._state())
            if progress is not None:
                progress(self.step, self.steps)

    def _advance(self, rows: torch.Tensor) -> None:
        recipe, slices = self.recipe, self.slices.select(rows)
        draws = generator(self.seed, "step", self.step)
        some, sign = drawn_frequencies(len(slices.k), recipe.part, draws)
        chosen = slices.points(some.to(self.device))
        if self.encoder is None:
            assert self.table is not None
            z = self.table.latents[rows].requires_grad_()
            divergence = 0.5 * z.square().sum(dim=1)
        else:
            centre, logarithm = self.encoder(self._encoded(slices))
            z = centre + (logarithm / 2).exp() * torch.randn(centre.shape, generator=draws).to(self.device)
            divergence = 0.5 * (centre.square() + logarithm.exp() - logarithm - 1).sum(dim=1)
        errors = squared_errors(self.decoder, chosen, self.rotations[rows], self.shift[rows], z, sign)
        loss = (errors * len(slices.k) + recipe.prior * divergence).mean() / len(slices.k)
        rate = decay(self.step, self.steps)
        self.optimiser.zero_grad()
        self.optimiser.param_groups[0]["lr"] = rate * recipe.rate
        loss.backward()
        self.optimiser.step()
        if self.table is not None:
            assert z.grad is not None
            self.table.step(rows, z.grad, rate * recipe.latent_rate)

    def _encoded(self, slices: Slices) -> torch.Tensor:
        """What an encoder sees: low frequencies, centred and multiplied by the sign of the CTF."""
        values = slices.values[:, self._low] * slices.transfer[:, self._low].sign()
        return torch.view_as_real(values).flatten(1)

    @torch.no_grad()
    def latents(self) -> torch.Tensor:
        """Of all particles, [N, d]."""
        if self.table is not None:
            return self.table.latents.clone()
        assert self.encoder is not None
        rows = torch.arange(len(self.slices), device=self.device).split(512)
        return torch.cat([self.encoder(self._encoded(self.slices.select(some)))[0] for some in rows])

    @property
    def _modules(self) -> dict[str, nn.Module]:
        named = {"decoder": self.decoder, "encoder": self.encoder, "table": self.table}
        return {name: module for name, module in named.items() if module is not None}

    def _state(self) -> dict[str, Any]:
        state: dict[str, Any] = {name: module.state_dict() for name, module in self._modules.items()}
        return {"step": self.step, "optimiser": self.optimiser.state_dict(), **state}

    def _restore(self, state: Mapping[str, Any]) -> None:
        for name, module in self._modules.items():
            module.load_state_dict(state[name])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step = int(state["step"])


class _Table(nn.Module):
    """Free latents [N, d], each with Adam of its own (Kingma and Ba 2015): a step changes the rows of its batch."""

    latents: torch.Tensor
    first: torch.Tensor
    second: torch.Tensor
    steps: torch.Tensor

    def __init__(self, latents: torch.Tensor):
        super().__init__()
        self.register_buffer("latents", latents.clone())
        self.register_buffer("first", torch.zeros_like(latents))
        self.register_buffer("second", torch.zeros_like(latents))
        self.register_buffer("steps", torch.zeros(len(latents), 1, dtype=latents.dtype))

    def step(self, rows: torch.Tensor, gradient: torch.Tensor, rate: float) -> None:
        """Move some of the rows, which must differ."""
        steps = self.steps[rows] + 1
        first = _BETAS[0] * self.first[rows] + (1 - _BETAS[0]) * gradient
        second = _BETAS[1] * self.second[rows] + (1 - _BETAS[1]) * gradient.square()
        unbiased, root = first / (1 - _BETAS[0] ** steps), (second / (1 - _BETAS[1] ** steps)).sqrt()
        self.latents[rows] -= rate * unbiased / (root + _EPSILON)
        self.first[rows], self.second[rows], self.steps[rows] = first, second, steps


class _Encoder(nn.Module):
    """The mean and the logarithm of the variance of latents, of low frequencies of images."""

    def __init__(self, inputs: int, dimensions: int, width: int, seed: int):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            layers: list[nn.Module] = [nn.Linear(inputs, width), nn.ReLU()]
            for _ in range(2):
                layers += [nn.Linear(width, width), nn.ReLU()]
            self.layers = nn.Sequential(*layers, nn.Linear(width, 2 * dimensions))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean, logarithm = self.layers(x).chunk(2, dim=1)
        return mean, logarithm


def random_latents(count: int, dimensions: int, seed: int) -> torch.Tensor:
    """Small random latents [N, d] to begin with."""
    return torch.randn((count, dimensions), generator=generator(seed, "latents")) * _FIRST_LATENTS


def drawn_frequencies(count: int, part: float, draws: torch.Generator) -> tuple[torch.Tensor, float]:
    """A random part of `count` frequencies, by their numbers, and the sign of k at which they are taken."""
    some = torch.randperm(count, generator=draws)[: max(1, round(part * count))]
    return some, 1.0 if torch.rand(1, generator=draws) < 0.5 else -1.0


def decay(step: int, steps: int) -> float:
    """The learning rate of a step relative to the first: half a cosine."""
    return _LAST_RATE + (1 - _LAST_RATE) * 0.5 * (1 + math.cos(math.pi * step / steps))


def network_images(
    decoder: Hypervolume,
    images: ParticleImages,
    rotations: torch.Tensor,
    shift: torch.Tensor,
    latents: torch.Tensor,
) -> torch.Tensor:
    """The images that a network gives particles, float32 [N, D, D] on the CPU, computed on its device.

    rotations: [N, 3, 3]. shift: [N, 2] in pixels. latents: [N, d].
    """
    device = next(decoder.parameters()).device
    found = []
    for rows in torch.arange(len(images)).split(64):
        transfer = images.transfer(rows)
        transfer = None if transfer is None else transfer.to(device)
        own = (each[rows].to(device, torch.float32) for each in (rotations, shift, latents))
        found.append(predicted_images(decoder, transfer, *own).cpu())
    return torch.cat(found)


def envelope_of(volume: torch.Tensor) -> torch.Tensor:
    """The root of the mean power of each shell of a map [D, D, D], from 0 cycles per box on, [D // 2 + 1]."""
    amplitude = shell_power(volume[None].double())[0].sqrt()
    amplitude = torch.cat([amplitude[:1], amplitude])
    return amplitude.clamp_min(_LEAST_ENVELOPE * float(amplitude.max())).float()
