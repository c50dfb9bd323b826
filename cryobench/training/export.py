"""The exported model of a training run: its files, written whole or not at all, and the card that describes it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from cryobench import environment
from cryobench.core import Objective, Samples
from cryobench.core.objective import Writer
from cryobench.errors import ResultsError, described
from cryobench.files import whole_file
from cryobench.priors.model_folder import CARD
from cryobench.training.settings import Settings

README = "README.md"


def write_model(folder: Path, files: Mapping[str, Writer], card: Mapping[str, Any] | None, text: str = "") -> None:
    """Write the files of a model by relative path, with its card as JSON and as Markdown if given.

    All files are written under temporary names before the first is renamed, so that existing files are unchanged if the
    disk is full, which raises `ResultsError`. The card is renamed last, so it never describes files that are missing.
    """
    from safetensors import SafetensorError

    if card is not None:
        # the first file here is renamed last
        files = {README: partial(write_text, text), CARD: partial(write_json, card)} | dict(files)
    try:
        for name in files:
            (folder / name).parent.mkdir(exist_ok=True)
        with ExitStack() as whole:  # files are renamed as the stack unwinds, last to first
            for name, write in files.items():
                write(whole.enter_context(whole_file(folder / name)))
    except (OSError, SafetensorError) as error:
        raise ResultsError(f"the model cannot be written to {folder} ({described(error)}); free some space; the "
                           "same command continues from the last checkpoint") from error  # fmt: skip


def make_card(
    settings: Settings, objective: Objective, step: int, samples: Samples, validation: Samples | None, best: float,
    best_step: int, before: Mapping[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The description of the network after `step` updates and of its training.

    before: the card of the model whose weights the run started with, empty if that has none. Its training images count
    as training images of this network too.
    """
    earlier = before or {}
    origins = [*earlier.get("trained_on", ()), *samples.origins]
    facts = samples.facts(step * settings.batch)
    halves = sorted({*earlier.get("halves", ()), *facts.get("halves", ())})
    card = facts | ({"halves": halves} if halves else {})
    card |= {
        "trained_on": [origin for k, origin in enumerate(origins) if origin not in origins[:k]],
        "validated_on": [] if validation is None else validation.origins,
        "steps": step,
        "settings": settings.to_dict() | asdict(objective, dict_factory=_stated),  # pyright: ignore
    }
    if before is not None:
        card["before"] = [*earlier.get("before", ()), {name: earlier.get(name) for name in ("steps", "settings")}]
    if best_step:
        card |= {"validation_loss": best, "validation_loss_at_step": best_step}
    return card | {"versions": environment.versions() | {"accelerate": environment.version("accelerate")}}


def _stated(fields: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """The parameters of a component, without what it derives from them."""
    return {name: value for name, value in fields if not name.startswith("_")}


def read_card(folder: Path) -> Mapping[str, Any]:
    """The card of the model in a folder; empty if there is none."""
    path = folder / CARD
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (OSError, ValueError) as error:
        raise ResultsError(f"{path} cannot be read ({described(error)}); remove it") from error


def write_weights(network: Any, path: Path, *, half: bool = False) -> None:
    """Write the weights of a network as safetensors; half: in half precision."""
    from safetensors.torch import save_file

    weights = {name: (tensor.half() if half else tensor).contiguous().cpu()
               for name, tensor in network.state_dict().items()}  # fmt: skip
    save_file(weights, path, metadata={"format": "pt"})


def write_json(values: Mapping[str, Any], path: Path) -> None:
    """Write indented JSON."""
    write_text(json.dumps(values, indent=1) + "\n", path)


def write_text(text: str, path: Path) -> None:
    """Write a text file."""
    path.write_text(text, encoding="utf-8")


def initial_weights(card: Mapping[str, Any]) -> str:
    """A sentence on the initial weights; empty for random weights."""
    start = card["settings"]["warm_start"]
    if not start:
        return ""
    runs = [str(run["steps"]) for run in card["before"]]
    trained = f", after {' + '.join(runs)} steps of earlier runs" if "None" not in runs else ""
    return f"Training started from the weights of `{start}`{trained}. "


def markdown(card: Mapping[str, Any], introduction: str) -> str:
    """The card as Markdown, after an introduction."""
    settings = card["settings"]
    lines = [
        introduction,
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
