"""Priors whose denoiser is closed form: `gaussian_field`, `gaussian_mixture`, `sparse_blocks`.

The sources of the same names draw images from the same distributions. Prior, images and posterior then match exactly,
and what a solver loses against the exact posterior is its own loss, not that of a network.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from cryobench.core import Shape, meters
from cryobench.distributions.blocks import BlocksParameters
from cryobench.distributions.distribution import Distribution
from cryobench.distributions.field import FieldParameters
from cryobench.distributions.mixture import MixtureParameters
from cryobench.errors import IncompatibleError
from cryobench.priors.denoising import DenoisingModel, DenoisingPrior, check_sigma

LEVELS = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)
"""a_t of the 1000 levels of Ho, Jain & Abbeel (2020, section 4)."""


class KnownModel(DenoisingModel):
    """The denoiser of a known prior, for images of any shape that it has a distribution for.

    distribution: that of images of a shape, always the same one.
    """

    prediction = "sample"

    def __init__(self, distribution: Callable[[Shape], Distribution], device: torch.device):
        self.distribution, self.device, self.alphas_cumprod = distribution, device, LEVELS

    def denoise(self, z: torch.Tensor, sigma: float | torch.Tensor) -> torch.Tensor:
        levels = sigma.flatten().tolist() if isinstance(sigma, torch.Tensor) else [sigma]
        for one in levels:
            check_sigma(one)
        if not any(levels):
            return z
        with meters.calling(meters.NETWORK, z):
            return self.distribution(tuple(z.shape[2:])).denoise(z, sigma)


class KnownPrior(DenoisingPrior):
    """A prior with a distribution in closed form, in the units of the file."""

    in_units_of_file = True
    noise = 0

    @abstractmethod
    def distribution(self, shape: Shape) -> Distribution:
        """The distribution of images of this shape."""

    def fixed(self) -> Callable[[Shape], Distribution]:
        """`distribution` with its files as they are now, whatever happens to them later; itself without files."""
        return self.distribution

    @abstractmethod
    def parameters_digest(self) -> str:
        """A digest of what it was measured on; '' if its parameters state all."""

    def load(self, device: torch.device | str = "cpu") -> KnownModel:
        """The denoiser, of its files as they are now. Raises `DataError` if one cannot be read."""
        return KnownModel(self.fixed(), torch.device(device))

    def check(self, shape: Shape) -> None:
        """Raise `IncompatibleError` for images that it has no distribution for."""
        if min(shape) < 2:
            raise IncompatibleError(f"a known prior is for images of 2 x 2 pixels or more, got {list(shape)}")
        self.distribution(tuple(shape))

    def weights_digest(self) -> str:
        return self.parameters_digest()

    def trained_on(self) -> Sequence[Mapping[str, str]]:
        """The origin of the images that it was measured on."""
        images = getattr(self, "images", None)
        origin = {} if images is None else images.open().origin
        return [origin] if origin else []


@dataclass(frozen=True)
class GaussianField(FieldParameters, KnownPrior):
    """A stationary Gaussian field with periodic borders: the Wiener filter is its denoiser.

        x ~ N(0, F^-1 S F),    S(k) = S_0 (1 + |k|^2 / corner^2)^(-exponent/2)
        E[x | x + s n = z] = F^-1 [S / (S + s^2)] F z

    S is measured where `images` or `spectrum` is given.
    """

    location_fields = ("spectrum",)


@dataclass(frozen=True)
class GaussianMixture(MixtureParameters, KnownPrior):
    """A mixture of Gaussians with low-rank plus isotropic covariances: several modes.

        p(x) = sum_k w_k N(x; m_k, C_k),    C_k = U_k V_k U_k^T + d_k I
        E[x | x + s n = z] = sum_k w_k(z) (m_k + C_k (C_k + s^2 I)^-1 (z - m_k))

    w_k(z): the probability of component k given z.
    """

    location_fields = ("file",)


@dataclass(frozen=True)
class SparseBlocks(BlocksParameters, KnownPrior):
    """Independent, sparse coefficients of the DCT of blocks: heavy tails.

        p(c) = large N(c; 0, s^2) + (1 - large) N(c; 0, small^2 s^2)

    c: a coefficient. s: its deviation, which falls with the frequency.
    """
