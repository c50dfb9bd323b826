"""Diffusion priors as deepinv denoisers, and deepinv denoisers as diffusion priors.

A denoiser of deepinv takes images in [0, 1], a cryobench prior in [-1, 1]: u = (x + 1) / 2, and noise with standard
deviation s in x has s / 2 in u. A denoiser D defines the predictions of a diffusion model (Karras et al. 2022, eq. 3):
with sigma^2 = (1 - a) / a,

    x0 = D(x_t / sqrt(a), sigma),    eps = (x_t - sqrt(a) x0) / sqrt(1 - a)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Annotated, Any, Literal

import deepinv as dinv
import torch

from cryobench.core import Shape, meters
from cryobench.errors import DependencyError, ParameterError
from cryobench.priors.denoising import DenoisingModel
from cryobench.priors.diffusion import Diffusion, DiffusionModel
from cryobench.spec import Range

Denoiser = dinv.models.Denoiser
Callback = Callable[[torch.Tensor, torch.Tensor], None]
"""Called after each denoiser evaluation with its input and its output, both in [-1, 1]."""


class ModelDenoiser(Denoiser):
    """A live diffusion prior as a denoiser of deepinv: (u, sigma) -> E[u0 | u0 + sigma n = u], images in [0, 1]."""

    def __init__(self, model: DenoisingModel, callback: Callback | None = None):
        super().__init__(device=model.device)
        self.model, self.callback = model, callback

    def forward(self, x: torch.Tensor, sigma: float | torch.Tensor, **_: object) -> torch.Tensor:
        """x: [B, 1, H, W]. sigma: for all images, or per image, [B]; for sigma = 0 the result is x."""
        levels = 2 * torch.as_tensor(sigma, dtype=torch.float64).flatten()
        if (levels == levels[0]).all():
            level: float | torch.Tensor = float(levels[0])
        else:
            level = levels.reshape(-1, 1, 1, 1).to(x)
        z = 2 * x - 1
        estimate = self.model.denoise(z, level)
        if self.callback is not None:
            self.callback(z, estimate)
        return (estimate + 1) / 2


def as_denoiser(
    prior: Diffusion | DenoisingModel, device: torch.device | str = "cpu", *, callback: Callback | None = None
) -> ModelDenoiser:
    """A diffusion prior, or its live model, as a `deepinv.models.Denoiser`. Network evaluations are still counted."""
    return ModelDenoiser(prior if isinstance(prior, DenoisingModel) else prior.load(device), callback)


class DenoiserModel(DiffusionModel):
    """A denoiser of deepinv as a live diffusion model, with the 1000 levels of a linear DDPM.

    Images are denoised one by one, because some of deepinv's denoisers stop when the whole batch has converged.
    """

    def __init__(self, denoiser: Denoiser, device: torch.device | str = "cpu"):
        # replaces the constructor of the base class, which takes a UNet; all its attributes are set here
        self.alphas_cumprod = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
        self.prediction = "sample"
        self.device = torch.device(device)
        self.denoiser = denoiser.to(self.device).eval()

    def network(self, x: torch.Tensor, t: float | torch.Tensor) -> torch.Tensor:
        """x_0 of x_t [B, 1, H, W] at level t, one for all images or one each, [B]."""
        levels = torch.as_tensor(t, dtype=torch.float64).flatten().expand(len(x)).tolist()
        with meters.calling(meters.NETWORK, x):
            return torch.cat(
                [self._one(image, self.alpha_between(level)) for image, level in zip(x.split(1), levels, strict=True)]
            )

    def _one(self, x: torch.Tensor, a: float) -> torch.Tensor:
        if hasattr(self.denoiser, "restart"):
            self.denoiser.restart = True  # otherwise it is warm-started from the previous image
        u = (x / a**0.5 + 1) / 2
        return 2 * self.denoiser(u, ((1 - a) / a) ** 0.5 / 2).to(x.dtype) - 1


@dataclass(frozen=True)
class DenoiserPrior(Diffusion, ABC):
    """A prior that wraps a denoiser of deepinv, without the parameters of weights on disk."""

    location_fields = ()
    revision: str = field(init=False, repr=False, default="main")
    pickle: bool = field(init=False, repr=False, default=False)
    precision: Literal["auto", "float32", "bfloat16", "float16"] = field(init=False, repr=False, default="float32")
    noise: float | Literal["auto"] = field(init=False, repr=False, default=0.0)
    schedule: str | None = field(init=False, repr=False, default=None)
    predicts: Literal["epsilon", "sample", "v_prediction"] | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        pass  # no folder and no repository to check

    @abstractmethod
    def denoiser(self) -> Denoiser:
        """The denoiser: (u, sigma) -> u, [B, 1, H, W] in [0, 1]."""

    def load(self, device: torch.device | str = "cpu") -> DenoiserModel:
        return DenoiserModel(self.denoiser(), device)

    def check(self, shape: Shape) -> None:
        return None

    def weights_digest(self) -> str:
        return ""

    def trained_on(self) -> Sequence[Mapping[str, str]]:
        return ()

    def details(self) -> Mapping[str, Any]:
        return {}

    def notes(self) -> Sequence[str]:
        return ()

    @property
    def trained_shape(self) -> None:
        return None

    @property
    def trained_on_clean(self) -> bool:
        return False

    @property
    def intensity(self) -> None:
        return None

    @property
    def trained_with_symmetries(self) -> bool:
        return False


@dataclass(frozen=True)
class ModelFree(DenoiserPrior):
    """A model-free denoiser of deepinv: `TVDenoiser`, `WaveletDenoiser` (sym8) or `MedianFilter`.

    The first two use a threshold, here `strength` times the noise level; the median filter ignores the noise level.
    """

    source: Annotated[Literal["tv", "wavelet", "median"], "which denoiser"] = "tv"
    strength: Annotated[float, Range(0.1, 10, log=True), "tv and wavelet: threshold over noise level"] = 1.0
    side: Annotated[int, "median: side of its window, in pixels"] = 3

    def __post_init__(self) -> None:
        if not 0 < self.strength < float("inf"):
            raise ParameterError(f"deepinv_denoiser: strength must be positive, got {self.strength:g}")
        if self.side < 1 or self.side % 2 == 0:
            raise ParameterError(f"deepinv_denoiser: side must be odd and at least 1, got {self.side}")

    def check(self, shape: Shape) -> None:
        if self.source == "wavelet" and not has_wavelets():
            raise DependencyError(f"deepinv_denoiser:wavelet: {NO_WAVELETS}")

    def denoiser(self) -> Denoiser:
        if self.source == "median":
            return dinv.models.MedianFilter(kernel_size=self.side)
        denoiser = dinv.models.TVDenoiser() if self.source == "tv" else dinv.models.WaveletDenoiser(wv="sym8")
        return _ThresholdDenoiser(denoiser, self.strength)


class _ThresholdDenoiser(Denoiser):
    """Adapts a denoiser whose second argument is a threshold to one whose second argument is the noise level."""

    def __init__(self, denoiser: Denoiser, strength: float):
        super().__init__()
        self.denoiser, self.strength = denoiser, strength

    def forward(self, x: torch.Tensor, sigma: float | torch.Tensor, **_: object) -> torch.Tensor:
        if hasattr(self.denoiser, "restart"):
            self.denoiser.restart = True
        return self.denoiser(x, ths=self.strength * sigma)


@dataclass(frozen=True)
class _Given(DenoiserPrior):
    """A prior that wraps the given denoiser."""

    source: str = "given"
    live: Denoiser | None = None

    def denoiser(self) -> Denoiser:
        assert self.live is not None
        return self.live


def from_denoiser(denoiser: Denoiser) -> Diffusion:
    """A denoiser of deepinv as a prior for any solver that takes a diffusion prior, deepinv's or cryobench's.

    denoiser: (u, sigma) -> u, for images [B, 1, H, W] in [0, 1]. It is not copied, and is moved to the device of the
    problem. In a spec, use `deepinv_denoiser:...` instead.
    """
    return _Given(live=denoiser)


NO_WAVELETS = "deepinv's wavelets need the package ptwt, which is not installed: `uv pip install ptwt`"


def has_wavelets() -> bool:
    """Whether deepinv's wavelets are available."""
    return find_spec("ptwt") is not None
