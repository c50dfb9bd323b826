"""`diffusion`: images as a denoising diffusion model knows them, by what is left when noise is taken off.

A network is trained to see through noise of every level t = 0 .. T-1 (Ho, Jain & Abbeel 2020, eq. 4):

    x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) eps,    eps ~ N(0, I),    a_t falling from nearly 1 to nearly 0.

Whatever it predicts, eps, x_0 or v = sqrt(a_t) eps - sqrt(1 - a_t) x_0 (Salimans & Ho 2022, appendix D), both eps and
x_0 follow from it, and nothing outside this file asks which it was. x_t / sqrt(a_t) is an image with white noise of
standard deviation sigma_t = sqrt((1 - a_t) / a_t) on it, and the estimate of x_0 is then E[x_0 | x_t]: the denoiser of
least mean squared error.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import torch

from cryobench import meters
from cryobench.core import Prior, Shape
from cryobench.errors import DataError, IncompatibleError, ParameterError, told
from cryobench.priors.model_folder import CARD, ModelFolder, find_model

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d import UNet2DModel

EMBEDDED = "embedded"
_PREDICTIONS = ("epsilon", "sample", "v_prediction")


class Prediction(NamedTuple):
    """What a network makes of noisy images x_t: the noise in them and the images without it, each [B, 1, H, W]."""

    eps: torch.Tensor
    x0: torch.Tensor


class DiffusionModel:
    """A live network with its noise schedule.

    unet: a diffusers `UNet2DModel` with as many channels in as out, r^2 of them: it works on images of r times its
    `sample_size`, pixel-unshuffled by r. alphas_cumprod: a_t, [T], falling. prediction: what the network predicts.
    """

    def __init__(
        self,
        unet: UNet2DModel,
        alphas_cumprod: torch.Tensor,
        prediction: str = "epsilon",
        *,
        device: torch.device | str = "cpu",
        bfloat16: bool = False,
    ):
        if prediction not in _PREDICTIONS:
            raise DataError(f"the network predicts {prediction!r}; known are {', '.join(_PREDICTIONS)}")
        self.unshuffle = _unshuffle(unet)
        self.image_shape = image_shape(unet.config)
        self.device = torch.device(device)
        self.alphas_cumprod = alphas_cumprod.double().cpu()
        self.prediction = prediction
        self._bfloat16 = bfloat16
        # channels last is what tensor cores want; on the CPU it made no difference
        layout = torch.channels_last if self.device.type == "cuda" else torch.preserve_format
        self.unet: Any = unet.to(self.device, memory_format=layout)  # pyright: ignore[reportCallIssue]

    @property
    def T(self) -> int:
        """The number of noise levels."""
        return len(self.alphas_cumprod)

    def alpha(self, t: int) -> float:
        """a_t; 1 for t < 0, where there is no noise."""
        return float(self.alphas_cumprod[t]) if t >= 0 else 1.0

    @cached_property
    def sigmas(self) -> torch.Tensor:
        """sigma_t = sqrt((1 - a_t) / a_t), [T] float64, rising: the noise in x_t / sqrt(a_t)."""
        return ((1 - self.alphas_cumprod) / self.alphas_cumprod).sqrt()

    def predict(self, x: torch.Tensor, t: float) -> Prediction:
        """eps and x_0 as the network sees them in x_t [B, 1, H, W] at level t, in the dtype of x. Differentiable.

        t may lie between two levels: a_t is then that of the sigma_t between them, geometrically.
        """
        return self._adapt(self.network(x, t), x, self._alpha_between(t))

    def denoise(self, z: torch.Tensor, sigma: float) -> torch.Tensor:
        """E[x | z] for z = x + sigma n, n ~ N(0, I), both [B, 1, H, W]: least mean squared error. Differentiable.

        sigma beyond the schedule's ends is met with the network's level at that end.
        """
        a = 1 / (1 + sigma**2)
        x = math.sqrt(a) * z
        return self._adapt(self.network(x, self.level_of(sigma)), x, a).x0

    def network(self, x: torch.Tensor, t: float) -> torch.Tensor:
        """The network's bare output [B, 1, H, W] on x_t at level t."""
        meters.count(meters.NETWORK, len(x))
        h = x.to(self.unet.dtype)
        if self.unshuffle > 1:
            h = torch.nn.functional.pixel_unshuffle(h, self.unshuffle)
        if self.device.type == "cuda":
            h = h.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._bfloat16):
            out = self.unet(h, torch.as_tensor(t, device=self.device), return_dict=False)[0]
        if self.unshuffle > 1:
            out = torch.nn.functional.pixel_shuffle(out, self.unshuffle)
        return out.to(x.dtype)

    @torch.no_grad()
    def generate(self, noise: torch.Tensor, steps: int = 50) -> torch.Tensor:
        """Images [B, 1, H, W] of the prior alone, from noise x_T ~ N(0, I): DDIM (Song, Meng & Ermon 2021, eq. 12)."""
        x = noise
        levels = torch.linspace(self.T - 1, 0, steps).round().int().tolist()
        for t, then in zip(levels, [*levels[1:], -1], strict=True):
            a, b = self.alpha(t), self.alpha(then)
            x0 = self.predict(x, t).x0.clamp(-1, 1)
            eps = (x - math.sqrt(a) * x0) / math.sqrt(1 - a)
            x = math.sqrt(b) * x0 + math.sqrt(1 - b) * eps
        return x

    def level_of(self, sigma: float) -> float:
        """The level t, between 0 and T - 1, whose sigma_t is `sigma`; between two levels, linear in log sigma."""
        logs = self.sigmas.log()
        above = int(torch.searchsorted(logs, math.log(max(sigma, 1e-12))))
        if above == 0:
            return 0.0
        if above == self.T:
            return self.T - 1.0
        low, high = logs[above - 1 : above + 1].tolist()
        return above - 1 + (math.log(sigma) - low) / (high - low)

    def _alpha_between(self, t: float) -> float:
        below = math.floor(t)
        if below == t:
            return self.alpha(below)
        low, high = self.sigmas[below : below + 2].log().tolist()
        return 1 / (1 + math.exp(2 * (low + (t - below) * (high - low))))

    def _adapt(self, output: torch.Tensor, x: torch.Tensor, a: float) -> Prediction:
        """eps and x_0 from what the network predicts; x_t = sqrt(a) x_0 + sqrt(1 - a) eps holds for them exactly."""
        signal, noise = math.sqrt(a), math.sqrt(1 - a)
        if self.prediction == "epsilon":
            return Prediction(output, (x - noise * output) / signal)
        if self.prediction == "sample":
            return Prediction((x - signal * output) / noise if noise > 0 else torch.zeros_like(x), output)
        return Prediction(noise * x + signal * output, signal * x - noise * output)


@dataclass(frozen=True)
class Diffusion(Prior):
    """A denoising diffusion model: a diffusers `UNet2DModel` with its scheduler, in a folder or on the hub.

    `embedded` is the one in the package. A folder is a diffusers pipeline (`unet/`, `scheduler/`), as `cryobench train`
    writes it, or holds the network alone, which is then taken for a DDPM of 1000 linear steps. `hf:OWNER/NAME` is a
    repository on the Hugging Face hub, taken from the local cache where it is there.
    """

    source: Annotated[str, "embedded, a folder, or hf:OWNER/NAME on the Hugging Face hub"] = EMBEDDED
    revision: Annotated[str, "branch, tag or commit, on the hub"] = "main"
    pickle: Annotated[bool, "allow weights that are pickles, which can run code when read"] = False
    precision: Annotated[
        Literal["auto", "float32", "bfloat16"], "of the network; auto: bfloat16 on CUDA, else float32"
    ] = "auto"

    def __post_init__(self) -> None:
        if not self.source.strip():
            raise ParameterError("diffusion: the source is empty; give embedded, a folder, or hf:OWNER/NAME")

    def load(self, device: torch.device | str = "cpu") -> DiffusionModel:
        """The live model on a device; read once and kept. Raises `DataError` for what cannot be read as one."""
        return _loaded(self._folder, self.weights_digest(), str(device), self.precision)

    def check(self, shape: Shape) -> None:
        """Raise `IncompatibleError` unless it was trained on images of this shape."""
        trained = image_shape(self._folder.unet_config)
        if shape != trained:
            raise IncompatibleError(
                f"the prior {self.source} was trained on images of {trained[0]} x {trained[1]}, and these are "
                f"{shape[0]} x {shape[1]}; give --size {trained[0]} to resample them, another prior, or train one with "
                "`cryobench train`"
            )

    def weights_digest(self) -> str:
        """SHA-256 over the weights and both configurations."""
        return _digest(self._folder)

    def trained_on(self) -> Sequence[Mapping[str, str]]:
        """What the card that `cryobench train` leaves beside the network says; nothing where there is none."""
        return self._folder.card.get("trained_on", ())

    @cached_property
    def _folder(self) -> ModelFolder:
        if self.source == EMBEDDED:
            return find_model(str(Path(__file__).parent / EMBEDDED))
        return find_model(self.source, revision=self.revision, pickle=self.pickle)


@dataclass(frozen=True)
class Embedded(Diffusion):
    """The diffusion model in the package, 128 x 128, trained on simulated particles; its card says on which."""

    source: Annotated[Literal["embedded"], "the packaged network"] = EMBEDDED


def image_shape(config: Mapping[str, Any]) -> Shape:
    """The images (H, W) that a network of this configuration works on."""
    size, r = config["sample_size"], math.isqrt(config["in_channels"])
    h, w = (size, size) if isinstance(size, int) else size
    return h * r, w * r


def _unshuffle(unet: UNet2DModel) -> int:
    """r, for a network of r^2 channels. Raises `DataError` for one that cannot be of grey images."""
    channels, out = unet.config["in_channels"], unet.config["out_channels"]
    r = math.isqrt(channels)
    if channels != out or r * r != channels:
        raise DataError(f"the network has {channels} channels in and {out} out; wanted 1, or r^2 of both: grey images, "
                        "pixel-unshuffled by r")  # fmt: skip
    return r


@lru_cache(maxsize=8)
def _digest(folder: ModelFolder) -> str:
    digest = hashlib.sha256()
    for config in (folder.unet_config, folder.scheduler_config):
        digest.update(json.dumps(config, sort_keys=True).encode())
    for path in folder.weights:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


@lru_cache(maxsize=2)
def _loaded(folder: ModelFolder, digest: str, device: str, precision: str) -> DiffusionModel:
    from diffusers.models.unets.unet_2d import UNet2DModel
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    try:
        unet: UNet2DModel = UNet2DModel.from_pretrained(  # pyright: ignore[reportAssignmentType]
            folder.network, use_safetensors=not folder.pickled, local_files_only=True, low_cpu_mem_usage=False
        )
        scheduler = DDPMScheduler.from_config(dict(folder.scheduler_config))
    except Exception as error:  # of the readers below: a truncated file, a name that does not fit, a missing key
        raise DataError(f"the prior in {folder.network} cannot be read: {told(error)}") from error
    on_cuda = torch.device(device).type == "cuda"
    return DiffusionModel(
        unet.float().eval().requires_grad_(False),
        scheduler.alphas_cumprod,
        scheduler.config["prediction_type"],
        device=device,
        bfloat16=precision == "bfloat16" or (precision == "auto" and on_cuda),
    )


__all__ = ["CARD", "EMBEDDED", "Diffusion", "DiffusionModel", "Embedded", "Prediction", "image_shape"]
