"""From a model on disk to a network and its noise levels: what can be a prior of grey images, and how it is read.

What can be told from the configurations is told without diffusers, which takes seconds to import.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from cryobench.core.operator import Shape
from cryobench.errors import DataError
from cryobench.priors.model_folder import ModelFolder

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d import UNet2DModel

PREDICTIONS = ("epsilon", "sample", "v_prediction")
"""What a network may predict, in diffusers' words: eps, x_0 or v."""


def image_shape(config: Mapping[str, Any]) -> Shape:
    """The images (H, W) that a network of this configuration works on."""
    size, r = config["sample_size"], math.isqrt(config["in_channels"])
    h, w = (size, size) if isinstance(size, int) else size
    return h * r, w * r


def unusable(config: Mapping[str, Any]) -> str | None:
    """Why a network of this configuration cannot be a prior of grey images, or None."""
    size, channels, out = (config.get(name) for name in ("sample_size", "in_channels", "out_channels"))
    sides = [size, size] if isinstance(size, int) else size
    if not isinstance(sides, Sequence) or len(sides) != 2 or not all(isinstance(n, int) and n > 0 for n in sides):
        return f"has a network of sample_size {size!r}; wanted the side of its images, or [height, width]"
    if not (isinstance(channels, int) and isinstance(out, int) and channels > 0):
        return f"has a network of {channels!r} channels in and {out!r} out; wanted two numbers"
    if out == 2 * channels:
        return f"has a network that predicts a variance too ({channels} channels in, {out} out); wanted as many as in"
    if channels != out or math.isqrt(channels) ** 2 != channels:
        return (
            f"has a network of {channels} channels in and {out} out; wanted 1, or r^2 of both: grey images, "
            "pixel-unshuffled by r"
        )
    if config.get("class_embed_type") is not None or config.get("num_class_embeds") is not None:
        return "has a network that is conditional on a class; wanted an unconditional one"
    if config.get("time_embedding_type", "positional") != "positional":
        return (
            f"has a network with a {config['time_embedding_type']!r} time embedding; wanted 'positional', which knows "
            "levels between those it was trained on"
        )
    return None


_BETAS = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr",
          "prediction_type")  # fmt: skip
"""What a scheduler's configuration says of its noise levels; the rest says how to sample."""


def unusable_schedule(config: Mapping[str, Any]) -> str | None:
    """Why a scheduler of this configuration is not of x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) eps, or None."""
    name = config.get("_class_name", "DDPMScheduler")
    betas = config.get("beta_schedule") or config.get("trained_betas")
    if not betas and name != "DDPMScheduler":
        return f"has a {name}, whose levels are no betas; wanted the scheduler of a DDPM, such as DDPMScheduler"
    predicts = config.get("prediction_type", "epsilon")
    if predicts not in PREDICTIONS or config.get("use_flow_sigmas"):
        return f"has a network that predicts {predicts!r} by its scheduler; known are {', '.join(PREDICTIONS)}"
    return None


def read_network(folder: ModelFolder) -> UNet2DModel:
    """The network with its weights, in float32. Raises `DataError` where they do not fit its configuration."""
    from accelerate import init_empty_weights
    from diffusers.models.unets.unet_2d import UNet2DModel

    with init_empty_weights():  # drawing weights takes longer than reading them
        unet: UNet2DModel = UNet2DModel.from_config(dict(folder.unet_config))  # pyright: ignore[reportAssignmentType]
    weights = _weights(folder)
    wanted = {name: tuple(tensor.shape) for name, tensor in unet.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    faults = [
        _some("are missing", [name for name in wanted if name not in found]),
        _some("are too many", [name for name in found if name not in wanted]),
        _some("have another shape", [f"{name} {found[name]} for {wanted[name]}" for name in wanted
                                     if name in found and found[name] != wanted[name]]),
        _some("are not finite", [name for name, tensor in weights.items() if not tensor.isfinite().all()]),
    ]  # fmt: skip
    if any(faults):
        raise DataError(f"its weights do not fit {folder.layout.config}: {'; '.join(filter(None, faults))}")
    unet.load_state_dict(weights, assign=True)
    return unet.eval().requires_grad_(False)


def _some(fault: str, names: Sequence[str]) -> str:
    """'3 are missing (a, b, ...)', '' for none."""
    return f"{len(names)} {fault} ({', '.join([*names[:2], *(['...'] if len(names) > 2 else [])])})" if names else ""


_RENAMED = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
"""Attention weights as diffusers called them before 0.15, and as it does now."""


def _weights(folder: ModelFolder) -> dict[str, torch.Tensor]:
    """The weights by name, float32. They are copied: a mapped file could be overwritten while the model lives."""
    from safetensors.torch import load_file

    weights: dict[str, torch.Tensor] = {}
    for path in folder.weights:
        read = torch.load(path, map_location="cpu", weights_only=True) if folder.layout.pickled else load_file(path)
        for name, tensor in read.items():
            for before, now in _RENAMED.items():
                name = name.replace(before, now)
            weights[name] = tensor.to(torch.float32, copy=True)
    return weights


def read_levels(config: Mapping[str, Any]) -> torch.Tensor:
    """a_t, [T] float32, of a scheduler's betas. Raises `DataError` for a scheduler that is not of betas."""
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    reason = unusable_schedule(config)
    if reason:
        raise DataError(f"the model {reason}")
    return DDPMScheduler(**{name: config[name] for name in _BETAS if config.get(name) is not None}).alphas_cumprod
