"""A hypervolume: the Hartley transform of a map as a network of frequency and latent (Zhong et al. 2021, Nat. Methods
18:176).

With the Fourier transform F(k) = sum_r v(r) exp(-2 pi i k . r), r from the centre of the map and k in cycles per voxel,

    H(k) = Re F(k) - Im F(k) = sum_r v(r) (cos 2 pi k . r + sin 2 pi k . r)

is real, and v(r) = D^-3 sum_k H(k) (cos 2 pi k . r + sin 2 pi k . r). The network is

    H(k; z) = E(|k|) f(sin 2 pi k . q_1, ..., sin 2 pi k . q_m, cos 2 pi k . q_1, ..., cos 2 pi k . q_m, z)

with f a residual multilayer perceptron, E an envelope that takes the fall of the spectrum from the network, and places
q drawn from a Gaussian of deviation sigma D / 2 voxels along each axis (Tancik et al. 2020, NeurIPS). There are 3 n of
them for n frequencies per axis; sigma = 0.5 as in cryoDRGN.

The image of a particle with the matrix A (`physics.projection`), shift t and transfer function C has the spectrum
Y(k) = C(k) exp(-2 pi i k . t) F(A^T (k, 0)) for |k| < 1/2. Turned back by its shift, the Hartley transform of both
sides is real, as C is even: Re Y' - Im Y' = C(k) H(A^T (k, 0)). Y(-k) is the conjugate of Y(k), so each coefficient
of the half spectrum gives two such numbers, at k and at -k, and white noise is white in them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from cryobench.numerics.fft import irfftn, rfftn
from cryobench.rng import generator

_POINTS = 2**17
"""Frequencies at which the network is evaluated at once, for maps."""


@dataclass(frozen=True)
class HypervolumeShape:
    """width: of hidden layers. depth: residual layers. frequencies: per axis, of the features. sigma: their deviation,
    as a part of half the side."""

    width: int
    depth: int
    frequencies: int = 32
    sigma: float = 0.5


SHAPES = {
    "tiny": HypervolumeShape(128, 3, 16),
    "small": HypervolumeShape(256, 3),
    "published": HypervolumeShape(512, 8),
}
"""`published`: 8 residual layers of 512 (cryoDRGN, CryoDECO). The others are for processors without an accelerator."""


class Hypervolume(nn.Module):
    """H(k; z) of maps of `side` voxels with latents of `dimensions` numbers.

    envelope: E at 0, 1, 2, ... cycles per box, [m], linear between them and constant beyond; None: 1. seed: of the
    places q and of the initial weights.
    """

    places: torch.Tensor
    envelope: torch.Tensor

    def __init__(
        self,
        side: int,
        dimensions: int,
        shape: HypervolumeShape = SHAPES["tiny"],
        *,
        envelope: torch.Tensor | None = None,
        seed: int = 0,
    ):
        super().__init__()
        self.side, self.dimensions = side, dimensions
        draws = generator(seed, "hypervolume")
        places = torch.randn((3 * shape.frequencies, 3), generator=draws) * (shape.sigma * side / 2)
        self.register_buffer("places", places)
        self.register_buffer("envelope", torch.ones(1) if envelope is None else envelope.float().cpu().clone())
        self.first = _linear(6 * shape.frequencies + dimensions, shape.width, draws)
        self.hidden = nn.ModuleList(_linear(shape.width, shape.width, draws) for _ in range(shape.depth))
        self.last = _linear(shape.width, 1, draws)

    def forward(self, k: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """H at frequencies k [..., 3] as (x, y, z) in cycles per voxel, with latents z [..., d]; [...].

        The leading axes of z are those of k, or broadcast to them: [B, 1, d] for [B, P, 3].
        """
        phase = (2 * torch.pi) * (k @ self.places.T)
        features = torch.cat([phase.sin(), phase.cos()], dim=-1)
        of_features = self.first.weight[:, : features.shape[-1]]
        of_latents = self.first.weight[:, features.shape[-1] :]
        x = torch.relu(features @ of_features.T + (z @ of_latents.T + self.first.bias))
        for layer in self.hidden:
            x = torch.relu(x + layer(x))
        return self.last(x)[..., 0] * self._envelope_at(k)

    def _envelope_at(self, k: torch.Tensor) -> torch.Tensor:
        if len(self.envelope) == 1:
            return self.envelope[0]
        place = (k.detach().square().sum(-1).sqrt() * self.side).clamp_max(len(self.envelope) - 1)
        below = place.floor().long().clamp_max(len(self.envelope) - 2)
        part = place - below
        return self.envelope[below] * (1 - part) + self.envelope[below + 1] * part

    @torch.no_grad()
    def volume(self, latent: torch.Tensor) -> torch.Tensor:
        """The map of a latent [d], float32 [D, D, D] on the CPU; frequencies from D/2 cycles per box on are 0."""
        D, device = self.side, self.places.device
        axis = torch.fft.fftfreq(D, device=device)
        z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
        k = torch.stack([x, y, z], dim=-1).flatten(0, 2)
        inside = (k.square().sum(1) < 0.25 * (1 - 1e-6)).nonzero()[:, 0]
        hartley = torch.zeros(D**3, device=device)
        z_row = latent.to(device, torch.float32)[None]
        for some in inside.split(_POINTS):
            hartley[some] = self(k[some], z_row)
        return hartley_inverse(hartley.reshape(D, D, D)).cpu()


def _linear(inputs: int, outputs: int, draws: torch.Generator) -> nn.Linear:
    """A layer with uniform weights and biases within 1 / sqrt(inputs), as torch's, from a generator of their own."""
    with torch.random.fork_rng(devices=[]):  # the layer first draws weights of its own
        layer = nn.Linear(inputs, outputs)
    bound = 1 / math.sqrt(inputs)
    with torch.no_grad():
        for parameter in (layer.weight, layer.bias):
            parameter.copy_((2 * torch.rand(parameter.shape, generator=draws) - 1) * bound)
    return layer


def hartley_inverse(hartley: torch.Tensor) -> torch.Tensor:
    """The map [D, D, D] with its centre at voxel D // 2, of its Hartley transform in the order of `torch.fft`."""
    spectrum = torch.fft.fftn(hartley)
    return torch.fft.fftshift((spectrum.real - spectrum.imag) / hartley.numel())


@dataclass(frozen=True, eq=False)
class Slices:
    """The spectra of N images inside a disc, as the hypervolume is fitted to them.

    k: [P, 2] as (x, y) in cycles per pixel, half a disc. values: Fourier coefficients of the images, the origin at
    pixel n // 2, divided by `noise`, complex [N, P]. transfer: the CTF divided by `noise`, [N, P]. With noise the
    standard deviation of the noise in a coefficient, the Hartley transforms have noise of variance 1.
    """

    k: torch.Tensor
    values: torch.Tensor
    transfer: torch.Tensor

    def __len__(self) -> int:
        return len(self.values)

    @staticmethod
    def of(images: torch.Tensor, transfer: torch.Tensor | None, noise_power: torch.Tensor) -> Slices:
        """Within D / 2 cycles per box. images: [N, D, D]. transfer: [N, D, D // 2 + 1]; None: 1. noise_power: of each
        ring (`maps.noise`)."""
        D, device = images.shape[-1], images.device
        ky = torch.fft.fftfreq(D, 1 / D, device=device)[:, None].expand(D, D // 2 + 1)
        kx = ky[: D // 2 + 1, 0].abs().expand(D, -1)
        inside = (kx.square() + ky.square() < (D / 2) ** 2 * (1 - 1e-6)) & ((kx > 0) | (ky >= 0))
        index = inside.flatten().nonzero()[:, 0]
        k = torch.stack([kx[inside], ky[inside]], dim=1)
        ring = torch.hypot(k[:, 0], k[:, 1]).round().long().clamp_min(1)  # ring 0 is measured with the mean subtracted
        deviation = (noise_power.to(device)[ring].sqrt() * D).float()
        centre = torch.exp((2j * torch.pi * (D // 2) / D) * k.sum(1).double()).to(torch.complex64)
        values = torch.cat([rfftn(some).flatten(1)[:, index] for some in images.float().split(512)])
        ones = torch.ones((len(images), len(index)), device=device)
        factors = ones if transfer is None else transfer.flatten(1)[:, index].float()
        return Slices(k / D, values * (centre / deviation), factors * (1 / deviation))

    def select(self, chosen: torch.Tensor | slice) -> Slices:
        """Some of the images."""
        return Slices(self.k, self.values[chosen], self.transfer[chosen])

    def points(self, chosen: torch.Tensor) -> Slices:
        """Some of the frequencies."""
        return Slices(self.k[chosen], self.values[:, chosen], self.transfer[:, chosen])

    def to(self, device: torch.device | str) -> Slices:
        return Slices(self.k.to(device), self.values.to(device), self.transfer.to(device))


def squared_errors(
    decoder: Hypervolume,
    slices: Slices,
    rotations: torch.Tensor,
    shift: torch.Tensor,
    z: torch.Tensor,
    sign: float = 1.0,
) -> torch.Tensor:
    """The mean over frequencies of |Re Y' - Im Y' - C H|^2 of each image, [n]; noise alone gives 1.

    slices: of these n images. rotations: A, [n, 3, 3]. shift: of the particle, (x, y) in pixels, [n, 2]. z: [n, d]. All
    three may need gradients. sign: -1 takes the frequencies -k instead of k.
    """
    k = sign * slices.k
    where = k @ rotations[:, :2]
    predicted = slices.transfer * decoder(where, z[:, None])
    phase = (2 * torch.pi) * (shift @ slices.k.T)
    real, imaginary = slices.values.real, slices.values.imag
    turned_real = real * phase.cos() - imaginary * phase.sin()
    turned_imaginary = real * phase.sin() + imaginary * phase.cos()
    return (turned_real - sign * turned_imaginary - predicted).square().mean(dim=1)


@torch.no_grad()
def predicted_images(
    decoder: Hypervolume, transfer: torch.Tensor | None, rotations: torch.Tensor, shift: torch.Tensor, z: torch.Tensor
) -> torch.Tensor:
    """The images of particles, float32 [n, D, D]: transfer: CTF [n, D, D // 2 + 1]; None: 1. The rest as in
    `squared_errors`."""
    D, device = decoder.side, rotations.device
    ky = torch.fft.fftfreq(D, 1 / D, device=device)[:, None].expand(D, D // 2 + 1)
    kx = ky[: D // 2 + 1, 0].abs().expand(D, -1)
    inside = kx.square() + ky.square() < (D / 2) ** 2 * (1 - 1e-6)
    k = torch.stack([kx[inside], ky[inside]], dim=1) / D
    where = k @ rotations[:, :2]
    plus, minus = decoder(where, z[:, None]), decoder(-where, z[:, None])
    phase = (-2 * torch.pi) * ((shift + D // 2) @ k.T)
    values = torch.complex(plus + minus, minus - plus) / 2 * torch.polar(torch.ones_like(phase), phase)
    spectra = values.new_zeros((len(z), D, D // 2 + 1))
    spectra[:, inside] = values
    return irfftn(spectra if transfer is None else spectra * transfer, (D, D))
