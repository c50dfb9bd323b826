"""What a training run leaves: a diffusers pipeline that others can load, and a card that says what it is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryobench import environment
from cryobench.files import whole_file
from cryobench.priors.model_folder import CARD
from cryobench.training.images import Images
from cryobench.training.settings import Settings, T


def write_pipeline(network: Any, prediction: str, folder: Path, *, half: bool = False) -> None:
    """Write a network [`UNet2DModel`] and its schedule as a diffusers `DDPMPipeline`, each file whole."""
    import diffusers
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
    from safetensors.torch import save_file

    scheduler = DDPMScheduler(num_train_timesteps=T, beta_schedule="linear", beta_start=1e-4, beta_end=0.02,
                              prediction_type=prediction, clip_sample=True)  # fmt: skip
    version = diffusers.__version__
    index = {
        "_class_name": "DDPMPipeline",
        "_diffusers_version": version,
        "scheduler": ["diffusers", "DDPMScheduler"],
        "unet": ["diffusers", "UNet2DModel"],
    }
    write_json(folder / "model_index.json", index)
    (folder / "unet").mkdir(exist_ok=True)
    (folder / "scheduler").mkdir(exist_ok=True)
    parts = (("scheduler/scheduler_config.json", "DDPMScheduler", scheduler),
             ("unet/config.json", "UNet2DModel", network))  # fmt: skip
    for file, name, part in parts:
        write_json(folder / file, {"_class_name": name, "_diffusers_version": version, **_public(part.config)})
    weights = {name: (tensor.half() if half else tensor).contiguous().cpu()
               for name, tensor in network.state_dict().items()}  # fmt: skip
    with whole_file(folder / "unet" / "diffusion_pytorch_model.safetensors") as beside:
        save_file(weights, beside, metadata={"format": "pt"})


def write_card(
    folder: Path, settings: Settings, step: int, images: Images, validation: Images | None, found: Mapping[str, Any]
) -> None:
    """Write what the network is to CARD, for programs, and to README.md, for people."""
    card = {
        "image_shape": list(images.shape),
        "trained_on": images.origins,
        "validated_on": [] if validation is None else validation.origins,
        "steps": step,
        "settings": settings.to_dict(),
        **found,
        "versions": environment.versions(),
    }
    write_json(folder / CARD, card)
    with whole_file(folder / "README.md") as beside:
        beside.write_text(_told(card), encoding="utf-8")


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON object, whole."""
    with whole_file(path) as beside:
        beside.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def _public(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if not name.startswith("_")}


def _told(card: Mapping[str, Any]) -> str:
    """The card as Markdown."""
    settings, shape = card["settings"], card["image_shape"]
    lines = [
        "# A diffusion prior for cryo-EM particle images",
        "",
        f"An unconditional DDPM of images of {shape[0]} x {shape[1]} pixels, each scaled to [-1, 1] between its own "
        f"extremes, trained with `cryobench train`: {card['steps']} steps of {settings['batch']} images, network "
        f"`{settings['preset']}`, averaged weights. Where its `UNet2DModel` has r^2 channels, images are "
        "pixel-unshuffled by r before it and shuffled after.",
        "",
        "Use it as `prior=FOLDER` of a cryobench solver, or load the folder with diffusers.",
        "",
        "Trained on, images taken in turn:",
        "",
        *[f"- `{spec}`" for spec in settings["data"]],
        "",
    ]
    if settings["validation"]:
        lines += ["Validated on:", "", *[f"- `{spec}`" for spec in settings["validation"]], ""]
    if "validation_loss" in card:
        lines += [f"Lowest validation loss: {card['validation_loss']:.6g}, after {card['validation_loss_at_step']} "
                  "steps; `loss.csv` has its course.", ""]  # fmt: skip
    lines += ["| setting | value |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in settings.items() if name not in ("data", "validation")]
    lines += ["", "| software | version |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in card["versions"].items()]
    return "\n".join(lines) + "\n"
