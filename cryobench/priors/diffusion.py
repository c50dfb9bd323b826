"""`diffusion`: the image distribution of a denoising diffusion model, used through its denoiser.

A network is trained to denoise images at every noise level t = 0 .. T-1 (Ho, Jain & Abbeel 2020, eq. 4):

    x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) eps,    eps ~ N(0, I),    a_t decreasing from nearly 1 to nearly 0.

It predicts eps, x_0 or v = sqrt(a_t) eps - sqrt(1 - a_t) x_0 (Salimans & Ho 2022, appendix D); both eps and x_0 follow
from each of them. x_t / sqrt(a_t) is an image with white noise of standard deviation sigma_t = sqrt((1 - a_t) / a_t),
and the estimate of x_0 is E[x_0 | x_t], the minimum mean squared error denoiser.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch

from cryobench import environment
from cryobench.core import Shape, meters
from cryobench.errors import CryobenchError, DataError, IncompatibleError, ParameterError, described
from cryobench.priors.denoising import DenoisingModel, DenoisingPrior, Prediction
from cryobench.priors.model_folder import CARD, HUB, ModelFolder, find_model
from cryobench.priors.network import image_shape, read_levels, read_network, side_factor, unusable
from cryobench.priors.schedule import PREDICTIONS, prediction, stated_schedule, unusable_schedule

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d import UNet2DModel

EMBEDDED, FOLDS = "embedded", "folds"
PACKAGED = (EMBEDDED, FOLDS)
"""The models in the package."""


class DiffusionModel(DenoisingModel):
    """A live network with its noise schedule.

    unet: a diffusers `UNet2DModel` with as many channels in as out, r^2 of them: its images are pixel-unshuffled by r.
    It was trained on images of r times its `sample_size` and works on any that its levels can halve, since its layers
    are convolutions and attention without positions. alphas_cumprod: a_t, [T], decreasing, between 1 and 0; it may end
    in 0, pure noise, unless the network predicts the noise, which then does not determine x_0. prediction: what the
    network predicts. half: bfloat16 or float16, in which the network is evaluated under autocast; inputs and outputs
    have the caller's dtype. Where a gradient is recorded, float16 is not used, because small gradients are zero in it.

    Raises `DataError` for a network that is not for grey images, and for an invalid schedule.
    """

    def __init__(
        self,
        unet: UNet2DModel,
        alphas_cumprod: torch.Tensor,
        prediction: str = "epsilon",
        *,
        device: torch.device | str = "cpu",
        half: torch.dtype | None = None,
    ):
        if prediction not in PREDICTIONS:
            raise DataError(f"the network predicts {prediction!r}; expected one of {', '.join(PREDICTIONS)}")
        reason = unusable(unet.config)
        if reason:
            raise DataError(f"the model {reason}")
        self.unshuffle = math.isqrt(unet.config["in_channels"])
        self.image_shape = image_shape(unet.config)
        self.device = torch.device(device)
        self.alphas_cumprod = _checked_levels(alphas_cumprod.double().cpu(), prediction)
        self.prediction = prediction
        self._half = half
        # channels last is faster on tensor cores; on the CPU it made no difference
        layout = torch.channels_last if self.device.type == "cuda" else torch.preserve_format
        self.unet: Any = unet.to(self.device, memory_format=layout)  # pyright: ignore[reportCallIssue, reportArgumentType]

    def predict(self, x: torch.Tensor, t: float) -> Prediction:
        """The network's estimates of eps and x_0 from x_t [B, 1, H, W] at level t, in the dtype of x. Differentiable.

        t may lie between two levels: a_t is then that of the geometrically interpolated sigma_t.
        """
        return self._adapt(self.network(x, t), x, self.alpha_between(t))

    def denoise(self, z: torch.Tensor, sigma: float | torch.Tensor) -> torch.Tensor:
        """E[x | z] for z = x + sigma n, n ~ N(0, I), both [B, 1, H, W]. Differentiable.

        sigma: for all images, or per image, positive and [B, 1, 1, 1]. Beyond the ends of the schedule the network is
        evaluated at the level of that end. For sigma = 0 the result is z, without a network evaluation.
        Raises `ParameterError` for a sigma that is negative or not finite.
        """
        if isinstance(sigma, torch.Tensor):
            level = torch.tensor([self.level_of(s) for s in sigma.flatten().tolist()], dtype=torch.float32)
        else:
            level = self.level_of(sigma)
            if sigma == 0:
                return z
        a = 1 / (1 + sigma**2)
        x = a**0.5 * z
        return self._adapt(self.network(x, level), x, a).x0

    def network(self, x: torch.Tensor, t: float | torch.Tensor) -> torch.Tensor:
        """The raw network output [B, 1, H, W] for x_t at level t, one for all images or one each, [B]."""
        with meters.calling(meters.NETWORK, x):
            h = x.to(self.unet.dtype)
            if self.unshuffle > 1:
                h = torch.nn.functional.pixel_unshuffle(h, self.unshuffle)
            if self.device.type == "cuda":
                h = h.contiguous(memory_format=torch.channels_last)
            exact = self._half is None or (self._half is torch.float16 and torch.is_grad_enabled() and x.requires_grad)
            with torch.autocast(self.device.type, self._half, enabled=not exact):
                out = self.unet(h, torch.as_tensor(t, device=self.device), return_dict=False)[0]
            if self.unshuffle > 1:
                out = torch.nn.functional.pixel_shuffle(out, self.unshuffle)
            return out.to(x.dtype)

    def _adapt(self, output: torch.Tensor, x: torch.Tensor, a: float | torch.Tensor) -> Prediction:
        """eps and x_0 from the network output, such that x_t = sqrt(a) x_0 + sqrt(1 - a) eps."""
        signal, noise = a**0.5, (1 - a) ** 0.5
        if self.prediction == "epsilon":
            return Prediction(output, (x - noise * output) / signal)
        if self.prediction == "sample":
            return Prediction((x - signal * output) / noise, output)
        return Prediction(noise * x + signal * output, signal * x - noise * output)


class NoisyImages(DenoisingModel):
    """The model of images with white noise, derived exactly and at no cost from a model of clean images.

    x = c + s n with c a clean image. At level t, z = x_t / sqrt(a_t) is c with noise of variance sigma_t^2 + s^2, which
    the network removes; the fraction s^2 / (sigma_t^2 + s^2) of the removed noise belongs to x:

        E[x | z] = E[c | z] + s^2 / (sigma_t^2 + s^2) (z - E[c | z])

    noise: s of each image, [B, 1, 1, 1], positive.
    """

    def __init__(self, clean: DenoisingModel, noise: torch.Tensor):
        vars(self).update(vars(clean))
        self._clean, self.noise = clean, noise

    def denoise(self, z: torch.Tensor, sigma: float | torch.Tensor) -> torch.Tensor:
        noise = self.noise.to(z)
        total = (sigma**2 + noise**2) ** 0.5
        clean = self._clean.denoise(z, total)
        return clean + (noise / total) ** 2 * (z - clean)

    def select(self, images: slice | torch.Tensor) -> NoisyImages:
        return NoisyImages(self._clean, self.noise[images])


def _checked_levels(alphas: torch.Tensor, prediction: str) -> torch.Tensor:
    """a_t [T]. Raises `DataError` for a schedule that is invalid for the network's prediction type."""
    decreasing = alphas.ndim == 1 and len(alphas) > 0 and bool((alphas.diff() <= 0).all())
    if not decreasing or not ((alphas >= 0) & (alphas < 1)).all():
        raise DataError(
            "the noise schedule is invalid; expected a_t, the products of 1 - beta, decreasing from below 1 to 0"
        )
    if prediction == "epsilon" and alphas[-1] == 0:
        raise DataError(
            "the noise schedule ends in pure noise (zero terminal SNR), where a network that predicts the noise does "
            "not determine the image; expected a network that predicts v or the image, or another schedule"
        )
    return alphas


@dataclass(frozen=True)
class Diffusion(DenoisingPrior):
    """A denoising diffusion model: a diffusers `UNet2DModel` with its scheduler, in a folder or on the hub.

    `embedded` and `folds` are the models in the package. A folder is a diffusers pipeline (`unet/`, `scheduler/`), as
    written by `cryobench train`, or the network or a checkpoint of a training run, whose scheduler is one or two
    folders above. A network without a scheduler needs `schedule` and `predicts`. `hf:OWNER/NAME` is a repository on the
    Hugging Face hub, read from the local cache if it is there. Only the betas and the prediction type of the scheduler
    are used.
    """

    # the digest of the weights includes the schedule
    location_fields = ("source", "revision", "pickle", "schedule", "predicts")
    source: Annotated[str, "embedded, folds, a folder, or hf:OWNER/NAME on the Hugging Face hub"] = EMBEDDED
    revision: Annotated[str, "branch, tag or commit, on the hub"] = "main"
    pickle: Annotated[bool, "allow pickled weights, which can run code when read"] = False
    precision: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        "of the network; auto: float32 on the CPU, bfloat16 on CUDA, float16 on cards without bfloat16",
    ] = "auto"
    noise: Annotated[
        float | Literal["auto"],
        "standard deviation of the white noise of the images, in addition to that of the training images; auto: "
        "estimated from the measurements if the training images had none, else 0",
    ] = "auto"
    schedule: Annotated[
        str | None, "of a network without a scheduler: NAME:STEPS or NAME:STEPS:START:END, such as linear:1000"
    ] = None
    predicts: Annotated[
        Literal["epsilon", "sample", "v_prediction"] | None, "the output of a network without a scheduler"
    ] = None
    _base: Path | None = field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        if not self.source.strip():
            raise ParameterError("diffusion: the source is empty; give embedded, folds, a folder, or hf:OWNER/NAME")
        if not self.revision.strip():
            raise ParameterError("diffusion: the revision is empty; give a branch, tag or commit, such as main")
        if self.noise != "auto" and not 0 <= self.noise < math.inf:
            raise ParameterError(f"diffusion: noise must be zero, positive or auto, got {self.noise:g}")
        if self.schedule is not None:
            stated_schedule(self.schedule)
        if self.source not in PACKAGED and not self.source.startswith((HUB, "/", "~")):
            # a relative path refers to the current folder now, which may change before the model is loaded
            object.__setattr__(self, "_base", Path.cwd())

    def prepare(self, device: torch.device) -> None:
        self.load(device)

    def load(self, device: torch.device | str = "cpu") -> DiffusionModel:
        """The live model on a device, cached after it is read. Raises `DataError` if it cannot be read."""
        folder = self.find()
        return _loaded(folder, _digest(folder, folder.stamp), str(device), _half(self.precision, torch.device(device)))

    def check(self, shape: Shape) -> None:
        """Raise `IncompatibleError` for sides that the network cannot halve, `DataError` for an invalid model."""
        folder = self.find()
        config = folder.unet_config
        reason = unusable(config) or unusable_schedule(folder.scheduler_config)
        if reason:
            raise DataError(f"diffusion: {self.source} {reason}")
        factor = side_factor(config)
        if any(side % factor for side in shape):
            near = max(1, round(shape[0] / factor)) * factor
            raise IncompatibleError(
                f"the network of the prior {self.source} takes images whose sides are multiples of {factor}, got "
                f"{shape[0]} x {shape[1]}; give --size {near} to resample them, or another prior"
            )
        folder.check_weights()

    @property
    def trained_shape(self) -> Shape | None:
        return image_shape(self.find().unet_config)

    def weights_digest(self) -> str:
        """SHA-256 of the weights and both configurations, independent of their location."""
        folder = self.find()
        return _digest(folder, folder.stamp)

    def details(self) -> Mapping[str, Any]:
        """The weights and the noise schedule that are used."""
        return self.find().details

    def notes(self) -> Sequence[str]:
        """What the folder alone does not determine: averaged or raw weights, a schedule from a folder above."""
        folder = self.find()
        said = folder.notes
        if self.trained_shape is None:
            said = [*said, "the network does not state the size of its training images"]
        return [f"prior {self.source}: {'; '.join(said)}"] if said else []

    def trained_on(self) -> Sequence[Mapping[str, str]]:
        """The origins in the model card that `cryobench train` writes; empty without a card."""
        return self.find().card.get("trained_on", ())

    @property
    def trained_on_clean(self) -> bool:
        """Whether the training images had no noise, from the model card."""
        return self.find().card.get("settings", {}).get("target") == "clean"

    @property
    def intensity(self) -> tuple[float, float] | None:
        """Mean and standard deviation over pixels of the training images in [-1, 1], with their noise; None if the card
        does not state them."""
        stated = self.find().card.get("intensity")
        return None if stated is None else (float(stated["mean"]), float(stated["deviation"]))

    @property
    def trained_with_symmetries(self) -> bool:
        """Whether the training images were transformed by all symmetries of the square, from the model card."""
        return self.find().card.get("settings", {}).get("turns") is True

    def find(self) -> ModelFolder:
        """The model folder and its card. Raises `DataError` if it does not exist."""
        if self.source not in PACKAGED:
            stated = {} if self.schedule is None else stated_schedule(self.schedule)
            stated |= {} if self.predicts is None else {"prediction_type": self.predicts}
            return find_model(self.source, base=self._base, revision=self.revision, pickle=self.pickle, stated=stated)
        packaged = Path(__file__).parent / self.source
        if not packaged.is_dir():
            raise DataError(f"the packaged prior is missing in this installation: {packaged} does not exist; "
                            "reinstall cryobench, or give another prior")  # fmt: skip
        return find_model(str(packaged))


@dataclass(frozen=True)
class Embedded(Diffusion):
    """The diffusion model in the package, 128 x 128, trained on the simulated particles listed in its card."""

    source: Annotated[Literal["embedded"], "the packaged network"] = EMBEDDED
    schedule: str | None = field(init=False, repr=False, default=None)
    predicts: Literal["epsilon", "sample", "v_prediction"] | None = field(init=False, repr=False, default=None)


@dataclass(frozen=True)
class Folds(Diffusion):
    """The larger diffusion model in the package, 128 x 128, trained on particles of the structures of many folds.

    Twice the weights and evaluations of twice the time of `embedded`, and better on structures of neither.
    """

    source: Annotated[Literal["folds"], "the packaged network"] = FOLDS
    schedule: str | None = field(init=False, repr=False, default=None)
    predicts: Literal["epsilon", "sample", "v_prediction"] | None = field(init=False, repr=False, default=None)


@lru_cache(maxsize=8)
def _digest(folder: ModelFolder, stamp: object) -> str:
    """SHA-256 of the content. `stamp` is a cache key: it changes when the files do, so that they are read again."""
    digest = hashlib.sha256()
    for config in (folder.unet_config, folder.scheduler_config):
        # entries with an underscore name the diffusers version and path that wrote the file
        public = {name: value for name, value in config.items() if not name.startswith("_")}
        digest.update(json.dumps(public, sort_keys=True).encode())
    for path in folder.weights:
        try:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise DataError(f"{path} cannot be read: {described(error)}") from error
    return digest.hexdigest()


def _half(precision: str, device: torch.device) -> torch.dtype | None:
    """The dtype of a precision that is not float32."""
    if precision == "auto" and device.type == "cuda":
        return torch.bfloat16 if environment.native_bfloat16(device) else torch.float16
    return {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(precision)


@lru_cache(maxsize=2)
def _loaded(folder: ModelFolder, digest: str, device: str, half: torch.dtype | None) -> DiffusionModel:
    environment.import_diffusers()
    try:
        return DiffusionModel(
            read_network(folder),
            read_levels(folder.scheduler_config),
            prediction(folder.scheduler_config),
            device=device,
            half=half,
        )
    except CryobenchError as error:
        raise DataError(f"the prior in {folder.root} cannot be used: {error}") from error
    except Exception as error:  # diffusers, safetensors and torch have their own exceptions
        raise DataError(f"the prior in {folder.root} cannot be read: {described(error)}") from error


__all__ = [
    "CARD",
    "EMBEDDED",
    "FOLDS",
    "Diffusion",
    "DiffusionModel",
    "Embedded",
    "NoisyImages",
    "Prediction",
    "image_shape",
]
