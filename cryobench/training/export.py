"""The result of a training run: a diffusers pipeline and a card that describes it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Literal

from cryobench import environment
from cryobench.errors import ResultsError, described
from cryobench.files import whole_file
from cryobench.priors.model_folder import CARD
from cryobench.training.images import Images
from cryobench.training.settings import BETAS, Settings, T

WEIGHTS = "diffusion_pytorch_model.safetensors"
README = "README.md"
_Writer = Callable[[Path], object]


def write_pipeline(
    network: Any,
    prediction: Literal["epsilon", "sample", "v_prediction"],
    folder: Path,
    *,
    card: Mapping[str, Any] | None = None,
    half: bool = False,
) -> None:
    """Write a network [`UNet2DModel`] and its schedule as a diffusers `DDPMPipeline`, with a card if given.

    All files are written under temporary names before the first is renamed, so that existing files are unchanged if the
    disk is full, which raises `ResultsError`. The card is renamed last, so it never describes files that are missing.
    """
    from safetensors import SafetensorError

    files = {"unet/" + WEIGHTS: partial(_write_weights, network, half)} | _configurations(network, prediction)
    if card is not None:
        # the first file here is renamed last
        files = {README: partial(_write_text, _markdown(card)), CARD: partial(_write_json, card)} | files
    try:
        (folder / "unet").mkdir(exist_ok=True)
        (folder / "scheduler").mkdir(exist_ok=True)
        with ExitStack() as whole:  # files are renamed as the stack unwinds, last to first
            for name, write in files.items():
                write(whole.enter_context(whole_file(folder / name)))
    except (OSError, SafetensorError) as error:
        raise ResultsError(f"the pipeline cannot be written to {folder} ({described(error)}); free some space; the "
                           "same command continues from the last checkpoint") from error  # fmt: skip


def make_card(
    settings: Settings, step: int, images: Images, validation: Images | None, best: float, best_step: int,
    before: Mapping[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The description of the network after `step` updates and of its training.

    before: the card of the prior whose weights the run started with, empty if that has none. Its training images count
    as training images of this network too.
    """
    earlier = before or {}
    origins = [*earlier.get("trained_on", ()), *images.origins]
    card = {
        "image_shape": list(images.shape),
        "intensity": images.intensity,
        "trained_on": [origin for k, origin in enumerate(origins) if origin not in origins[:k]],
        "validated_on": [] if validation is None else validation.origins,
        "steps": step,
        "settings": settings.to_dict(),
    }
    if before is not None:
        card["before"] = [*earlier.get("before", ()), {name: earlier.get(name) for name in ("steps", "settings")}]
    if best_step:
        card |= {"validation_loss": best, "validation_loss_at_step": best_step}
    return card | {"versions": environment.versions() | {"accelerate": environment.version("accelerate")}}


def read_card(folder: Path) -> Mapping[str, Any]:
    """The card of the pipeline in a folder; empty if there is none."""
    path = folder / CARD
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (OSError, ValueError) as error:
        raise ResultsError(f"{path} cannot be read ({described(error)}); remove it") from error


def _configurations(network: Any, prediction: Literal["epsilon", "sample", "v_prediction"]) -> dict[str, _Writer]:
    """Functions that write the pipeline's configuration files as diffusers does."""
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
    return {name: partial(_write_json, value) for name, value in values.items()}


def _write_weights(network: Any, half: bool, path: Path) -> None:
    from safetensors.torch import save_file

    weights = {name: (tensor.half() if half else tensor).contiguous().cpu()
               for name, tensor in network.state_dict().items()}  # fmt: skip
    save_file(weights, path, metadata={"format": "pt"})


def _write_json(values: Mapping[str, Any], path: Path) -> None:
    _write_text(json.dumps(values, indent=1) + "\n", path)


def _write_text(text: str, path: Path) -> None:
    path.write_text(text, encoding="utf-8")


def _public(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if not name.startswith("_")}


def _initial_weights(card: Mapping[str, Any]) -> str:
    """A sentence on the initial weights; empty for random weights."""
    start = card["settings"]["warm_start"]
    if not start:
        return ""
    runs = [str(run["steps"]) for run in card["before"]]
    trained = f", after {' + '.join(runs)} steps of earlier runs" if "None" not in runs else ""
    return f"Training started from the weights of `{start}`{trained}. "


def _markdown(card: Mapping[str, Any]) -> str:
    """The card as Markdown."""
    settings, shape = card["settings"], card["image_shape"]
    kind = "The images were used with their noise."
    if settings["target"] == "clean":
        kind = "The clean images were used, on the scale of the noisy ones."
    lines = [
        "# A diffusion prior for cryo-EM particle images",
        "",
        f"An unconditional DDPM of images of {shape[0]} x {shape[1]} pixels, each scaled to [-1, 1] between its own "
        f"extremes, trained with `cryobench train`: {card['steps']} steps of {settings['batch']} images, network "
        f"`{settings['network']}`, averaged weights. {_initial_weights(card)}{kind} If its `UNet2DModel` has r^2 "
        "channels, images are pixel-unshuffled by r before it and shuffled after.",
        "",
        "Use it as `prior=./FOLDER` of a cryobench solver, or load the folder with diffusers.",
        "",
        "Trained on images taken from these sources in turn:",
        "",
        *[f"- `{spec}`" for spec in settings["data"]],
        "",
    ]
    if settings["validation"]:
        lines += ["Validated on:", "", *[f"- `{spec}`" for spec in settings["validation"]], ""]
    if "validation_loss" in card:
        lines += [f"Lowest validation loss of the run: {card['validation_loss']:.6g}, after "
                  f"{card['validation_loss_at_step']} steps; see `loss.csv`.", ""]  # fmt: skip
    lines += ["| setting | value |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in settings.items() if name not in ("data", "validation")]
    lines += ["", "| software | version |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in card["versions"].items()]
    return "\n".join(lines) + "\n"
