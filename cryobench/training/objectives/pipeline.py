"""The diffusers pipeline that `ddpm` exports."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

from cryobench.core.objective import Writer
from cryobench.extras import of_extra
from cryobench.training.export import initial_weights, markdown, write_json, write_model, write_weights

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
T = 1000
"""Noise levels."""
BETAS = (1e-4, 0.02)
"""The first and last of the T variances beta_t, evenly spaced (Ho, Jain & Abbeel 2020, section 4)."""
Predicted = Literal["epsilon", "sample", "v_prediction"]


def pipeline_files(network: Any, prediction: Predicted, *, half: bool = False) -> Mapping[str, Writer]:
    """The files of a network [`UNet2DModel`] and its schedule as a diffusers `DDPMPipeline`."""
    with of_extra("diffusion"):
        import diffusers
        from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    scheduler = DDPMScheduler(num_train_timesteps=T, beta_schedule="linear", beta_start=BETAS[0], beta_end=BETAS[1],
                              prediction_type=prediction, clip_sample=True)  # fmt: skip
    version = {"_diffusers_version": diffusers.__version__}
    parts = {"scheduler": ["diffusers", "DDPMScheduler"], "unet": ["diffusers", "UNet2DModel"]}
    values = {
        "model_index.json": {"_class_name": "DDPMPipeline"} | version | parts,
        "scheduler/scheduler_config.json": {"_class_name": "DDPMScheduler"} | version | _public(scheduler.config),
        "unet/config.json": {"_class_name": "UNet2DModel"} | version | _public(network.config),
    }
    weights: dict[str, Writer] = {WEIGHTS: partial(write_weights, network, half=half)}
    return weights | {name: partial(write_json, value) for name, value in values.items()}


def write_pipeline(
    network: Any, prediction: Predicted, folder: Path, *, card: Mapping[str, Any], half: bool = False
) -> None:
    """Write the pipeline with its card, whole or not at all; see `write_model`."""
    text = markdown(card, introduction(card))
    write_model(folder, pipeline_files(network, prediction, half=half), card, text)


def introduction(card: Mapping[str, Any]) -> str:
    """What the prior is, how it was trained and how it is used."""
    settings, shape = card["settings"], card["image_shape"]
    kind = "The images were used with their noise."
    if settings["target"] == "clean":
        kind = "The clean images were used, on the scale of the noisy ones."
    return (
        "# A diffusion prior for cryo-EM particle images\n\n"
        f"An unconditional DDPM of images of {shape[0]} x {shape[1]} pixels, each scaled to [-1, 1] between its own "
        f"extremes, trained with `cryobench train`: {card['steps']} steps of {settings['batch']} images, network "
        f"`{settings['network']}`, averaged weights. {initial_weights(card)}{kind} If its `UNet2DModel` has r^2 "
        "channels, images are pixel-unshuffled by r before it and shuffled after.\n\n"
        "Use it as `prior=./FOLDER` of a cryobench solver, or load the folder with diffusers."
    )


def _public(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if not name.startswith("_")}
