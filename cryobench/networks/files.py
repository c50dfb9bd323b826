"""The files of a denoising network: FOLDER/config.json, its architecture, and FOLDER/model.safetensors, its weights.

`cryobench train` adds a card, cryobench.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from cryobench.errors import DataError, described
from cryobench.networks.unet import UNet, UNetConfig

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
ARCHITECTURE = "unet"


def config_values(config: UNetConfig) -> dict[str, Any]:
    """The content of `CONFIG`. radius and stride, in pixels, follow from the architecture; they are for readers."""
    return {
        "architecture": ARCHITECTURE,
        "channels": list(config.channels),
        "unshuffle": config.unshuffle,
        "radius": config.radius,
        "stride": config.stride,
        "input": "an image of mean 0 and standard deviation 1",
    }


def read_config(folder: Path) -> UNetConfig:
    """The architecture of the network in a folder. Raises `DataError` if there is none that is known."""
    values = read_json(folder / CONFIG)
    if values.get("architecture") != ARCHITECTURE:
        raise DataError(
            f"{folder / CONFIG} states the architecture {values.get('architecture')!r}; expected {ARCHITECTURE!r}, as "
            "`cryobench train --objective noise2noise` writes it"
        )
    try:
        return UNetConfig(tuple(map(int, values["channels"])), int(values["unshuffle"]))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{folder / CONFIG} is no U-Net ({described(error)}); copy it again") from error


def read_network(folder: Path) -> UNet:
    """The network in a folder, float32 on the CPU, for evaluation. Raises `DataError` if it cannot be read."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    with torch.device("meta"):  # no memory and no random numbers for weights that are replaced
        network = UNet(read_config(folder))
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
        raise DataError(f"{path} cannot be read ({described(error)}); give a folder that `cryobench train --objective "
                        "noise2noise` wrote") from error  # fmt: skip
    if not isinstance(values, dict):
        raise DataError(f"{path} holds a {type(values).__name__}; expected an object: copy it again")
    return values
