"""The files of a network: FOLDER/config.json, its architecture, and FOLDER/model.safetensors, its weights.

`cryobench train` adds a card, cryobench.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Protocol

import torch

from cryobench.errors import DataError, described
from cryobench.networks.film import FilmConfig, FilmUNet
from cryobench.networks.unet import UNet, UNetConfig

CONFIG = "config.json"
WEIGHTS = "model.safetensors"


class Config(Protocol):
    """The frozen dataclass of an architecture. facts: what follows from it, for readers of `CONFIG`."""

    @property
    def facts(self) -> Mapping[str, Any]: ...


_ARCHITECTURES: dict[str, tuple[type[Any], type[Any], str]] = {
    "unet": (UNetConfig, UNet, "noise2noise"),
    "film_unet": (FilmConfig, FilmUNet, "conditional"),
}
"""By name in `CONFIG`: its configuration, its network, and the objective that trains it."""


def config_values(config: Config, **others: Any) -> dict[str, Any]:
    """The content of `CONFIG`. others: what users of the network state besides its architecture."""
    name = next(name for name, (kind, _, _) in _ARCHITECTURES.items() if isinstance(config, kind))
    return {"architecture": name, **asdict(config), **config.facts, **others}  # type: ignore[call-overload]


def read_config(folder: Path, architecture: str = "unet") -> Any:
    """The configuration of the network in a folder. Raises `DataError` if it is not of this architecture."""
    kind, _, objective = _ARCHITECTURES[architecture]
    values = read_json(folder / CONFIG)
    if values.get("architecture") != architecture:
        raise DataError(
            f"{folder / CONFIG} states the architecture {values.get('architecture')!r}; expected {architecture!r}, as "
            f"`cryobench train --objective {objective}` writes it"
        )
    try:
        found = {each.name: values[each.name] for each in fields(kind) if each.name in values}
        return kind(**{name: tuple(map(int, value)) if isinstance(value, list) else value
                       for name, value in found.items()})  # fmt: skip
    except (TypeError, ValueError) as error:
        raise DataError(f"{folder / CONFIG} is no U-Net ({described(error)}); copy it again") from error


def read_network(folder: Path, architecture: str = "unet") -> Any:
    """The network in a folder, float32 on the CPU, for evaluation. Raises `DataError` if it cannot be read."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    with torch.device("meta"):  # no memory and no random numbers for weights that are replaced
        network = _ARCHITECTURES[architecture][1](read_config(folder, architecture))
    try:
        network.load_state_dict(load_file(folder / WEIGHTS), assign=True)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise DataError(f"{folder / WEIGHTS} cannot be read as the weights of the network in {CONFIG} "
                        f"({described(error)}); copy the folder again") from error  # fmt: skip
    return network.float().eval().requires_grad_(False)


def read_json(path: Path) -> Mapping[str, Any]:
    """A JSON object. Raises `DataError`."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({described(error)}); give a folder that `cryobench train` "
                        "wrote") from error  # fmt: skip
    if not isinstance(values, dict):
        raise DataError(f"{path} holds a {type(values).__name__}; expected an object: copy it again")
    return values
