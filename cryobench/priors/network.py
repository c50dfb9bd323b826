"""Reading a network and its noise levels from a model folder, and checking that they can be a prior of grey images.

Configurations are checked without diffusers, whose import takes seconds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cryobench.core.operator import Shape
from cryobench.errors import DataError, described
from cryobench.priors.model_folder import ModelFolder

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d import UNet2DModel

PREDICTIONS = ("epsilon", "sample", "v_prediction")
"""The predictions of a network, in diffusers' terms: eps, x_0 or v."""


def image_shape(config: Mapping[str, Any]) -> Shape:
    """The shape (H, W) of the images of a network with this configuration."""
    size, r = config["sample_size"], math.isqrt(config["in_channels"])
    h, w = (size, size) if isinstance(size, int) else size
    return h * r, w * r


def unusable(config: Mapping[str, Any]) -> str | None:
    """The reason why a network with this configuration cannot be a prior of grey images, or None."""
    size, channels, out = (config.get(name) for name in ("sample_size", "in_channels", "out_channels"))
    sides = [size, size] if isinstance(size, int) else size
    if not isinstance(sides, Sequence) or len(sides) != 2 or not all(isinstance(n, int) and n > 0 for n in sides):
        return f"has a network with sample_size {size!r}; expected the side of its images, or [height, width]"
    if not (isinstance(channels, int) and isinstance(out, int) and channels > 0):
        return f"has a network with {channels!r} input and {out!r} output channels; expected two numbers"
    if out == 2 * channels:
        return (
            f"has a network that also predicts a variance ({channels} channels in, {out} out); expected equal numbers"
        )
    if channels != out or math.isqrt(channels) ** 2 != channels:
        return (
            f"has a network with {channels} input and {out} output channels; expected 1, or r^2 of both: grey images, "
            "pixel-unshuffled by r"
        )
    if config.get("class_embed_type") is not None or config.get("num_class_embeds") is not None:
        return "has a class-conditional network; expected an unconditional one"
    if config.get("time_embedding_type", "positional") != "positional":
        return (
            f"has a network with a {config['time_embedding_type']!r} time embedding; expected 'positional', which is "
            "defined between the levels of training"
        )
    return None


_BETAS = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr",
          "prediction_type")  # fmt: skip
"""The parameters of a scheduler that determine its noise levels; the others determine how to sample."""


def unusable_schedule(config: Mapping[str, Any]) -> str | None:
    """The reason why a scheduler with this configuration is not supported, or None.

    Supported are schedules x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) eps.
    """
    name = config.get("_class_name", "DDPMScheduler")
    betas = config.get("beta_schedule") or config.get("trained_betas")
    if not betas and name != "DDPMScheduler":
        return f"has a {name}, which is not defined by betas; expected the scheduler of a DDPM, such as DDPMScheduler"
    predicts = config.get("prediction_type", "epsilon")
    if predicts not in PREDICTIONS or config.get("use_flow_sigmas"):
        return f"has a scheduler with the prediction type {predicts!r}; expected one of {', '.join(PREDICTIONS)}"
    return None


def read_network(folder: ModelFolder) -> UNet2DModel:
    """The network with its weights in float32, read by diffusers from local files without executing code in them.

    Raises `DataError` for weights that cannot be read or do not fit the configuration.
    """
    from diffusers.models.unets.unet_2d import UNet2DModel

    config, layout = folder.unet_config, folder.layout
    try:
        with _silent():
            loaded: Any = UNet2DModel.from_pretrained(
                folder.root / Path(layout.config).parent,
                variant=layout.variant,
                use_safetensors=not layout.pickled,  # pickles are read with weights_only
                local_files_only=True,
                torch_dtype=torch.float32,
                disable_mmap=True,  # a memory-mapped file could be overwritten while the model is in use
                ignore_mismatched_sizes=True,  # they are in the report, and an error below
                output_loading_info=True,
            )
        unet, report = loaded
    except Exception as error:  # from diffusers, safetensors, torch or the disk
        raise DataError(
            f"its network cannot be read by diffusers ({described(error)}); expected a UNet2DModel: download it again"
        ) from error
    wrong_shapes = [f"{name} {tuple(found)} for {tuple(shape)}" for name, found, shape in report["mismatched_keys"]]
    wrong = {name for name, *_ in report["mismatched_keys"]} | set(report["missing_keys"])
    infinite = [name for name, tensor in unet.state_dict().items() if name not in wrong and not tensor.isfinite().all()]
    faults = [
        _some("are missing", sorted(report["missing_keys"])),
        _some("are unexpected", sorted(report["unexpected_keys"])),
        _some("have a wrong shape", wrong_shapes),
        _some("are not finite", infinite),
    ]
    if any(faults):
        raise DataError(f"its weights do not fit {layout.config}: {'; '.join(filter(None, faults))}")
    # diffusers records the local folder, which would be written to copies of the network
    unet.register_to_config(_name_or_path=config.get("_name_or_path", ""))
    return unet.eval().requires_grad_(False)


@contextmanager
def _silent() -> Iterator[None]:
    """Suppress warnings and progress bars of diffusers: `read_network` raises an error for what they report."""
    from diffusers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _some(fault: str, names: Sequence[str]) -> str:
    """'3 are missing (a, b, ...)', '' for no names."""
    return f"{len(names)} {fault} ({', '.join([*names[:2], *(['...'] if len(names) > 2 else [])])})" if names else ""


def read_levels(config: Mapping[str, Any]) -> torch.Tensor:
    """a_t, [T] float32, from a scheduler's betas. Raises `DataError` for a scheduler that is not defined by betas."""
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    reason = unusable_schedule(config)
    if reason:
        raise DataError(f"the model {reason}")
    return DDPMScheduler(**{name: config[name] for name in _BETAS if config.get(name) is not None}).alphas_cumprod
