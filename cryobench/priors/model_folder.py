"""Where a diffusion model lies: a folder or the local cache of the Hugging Face hub; downloaded only where it is not.

    FOLDER/model_index.json                            a diffusers pipeline
    FOLDER/unet/config.json, unet/*.safetensors        the network
    FOLDER/scheduler/scheduler_config.json             its noise schedule
    FOLDER/cryobench.json                              what `cryobench train` knows of it

A folder with config.json and weights of its own is the network alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cryobench.errors import DataError, ParameterError, told

CARD = "cryobench.json"
_HUB = re.compile(r"hf:(?P<repository>[\w.-]+/[\w.-]+)")
_SECONDS = 5.0
"""How long the hub has to answer before it counts as out of reach."""
_WANTED = ["model_index.json", "*config.json", "*.safetensors", "*.safetensors.index.json", CARD]


@dataclass(frozen=True)
class ModelFolder:
    """The parts of a model on disk. network: the folder of its configuration and weights; weights: its files."""

    root: Path
    network: Path
    weights: tuple[Path, ...]
    pickled: bool

    @cached_property
    def unet_config(self) -> Mapping[str, Any]:
        """The configuration of the `UNet2DModel`."""
        config = _read(self.network / "config.json")
        if config.get("_class_name") != "UNet2DModel" or not config.get("sample_size"):
            raise DataError(f"{self.network}: wanted a diffusers UNet2DModel with a sample_size, got "
                            f"{config.get('_class_name')} with {config.get('sample_size')}")  # fmt: skip
        return config

    @cached_property
    def scheduler_config(self) -> Mapping[str, Any]:
        """The configuration of its noise schedule; empty, which is DDPM's own, where there is none."""
        path = self.root / "scheduler" / "scheduler_config.json"
        return _read(path) if path.exists() else {}

    @cached_property
    def card(self) -> Mapping[str, Any]:
        """What `cryobench train` wrote beside it; empty for a model of others."""
        path = self.root / CARD
        return _read(path) if path.exists() else {}


def find_model(source: str, *, revision: str = "main", pickle: bool = False) -> ModelFolder:
    """The model that a folder or hf:OWNER/NAME names. Raises `DataError` where there is none that can be read."""
    if source.startswith("hf:"):
        match = _HUB.fullmatch(source)
        if match is None:
            raise ParameterError(f"diffusion: wanted hf:OWNER/NAME, such as hf:owner/ddpm-128, got {source!r}")
        return _model_in(_on_hub(match["repository"], revision, pickle), source, pickle)
    folder = Path(source).expanduser()
    if not folder.is_dir():
        raise DataError(f"diffusion: {source} is no folder; give embedded, the folder of a diffusers model, or "
                        "hf:OWNER/NAME")  # fmt: skip
    return _model_in(folder, source, pickle)


def _model_in(root: Path, source: str, pickle: bool) -> ModelFolder:
    network = root / "unet" if (root / "unet").is_dir() else root
    if not (network / "config.json").is_file():
        raise DataError(
            f"diffusion: {source} holds no diffusers model: there is neither unet/config.json nor config.json"
        )
    weights = sorted(network.glob("*.safetensors"))
    if weights:
        return ModelFolder(root, network, tuple(weights), pickled=False)
    pickles = sorted(network.glob("*.bin"))
    if not pickles:
        raise DataError(f"diffusion: {source} has no weights: {network} holds neither *.safetensors nor *.bin")
    if not pickle:
        raise DataError(
            f"diffusion: the weights of {source} are a pickle, {pickles[0].name}, which can run code when it is read; "
            "convert it to safetensors, or give pickle=true where you trust it"
        )
    return ModelFolder(root, network, tuple(pickles), pickled=True)


def _on_hub(repository: str, revision: str, pickle: bool) -> Path:
    """The repository's snapshot in the local cache, downloaded where it is not there whole."""
    import huggingface_hub

    wanted = [*_WANTED, "*.bin"] if pickle else _WANTED
    cached = huggingface_hub.try_to_load_from_cache(repository, "unet/config.json", revision=revision)
    if not isinstance(cached, str):
        cached = huggingface_hub.try_to_load_from_cache(repository, "config.json", revision=revision)
    if isinstance(cached, str):
        folder = Path(cached).parent  # repository/snapshots/COMMIT, or unet in it
        root = folder.parent if folder.name == "unet" else folder
        if any(root.rglob("*.safetensors")) or any(root.rglob("*.bin")):
            return root
    try:
        huggingface_hub.HfApi().model_info(repository, revision=revision, timeout=_SECONDS)
        return Path(huggingface_hub.snapshot_download(repository, revision=revision, allow_patterns=wanted,
                                                      etag_timeout=_SECONDS))  # fmt: skip
    except Exception as error:  # of the hub's client, of the HTTP library below it, of the disk
        from huggingface_hub.constants import HF_HUB_CACHE

        option = "" if revision == "main" else f" --revision {revision}"
        raise DataError(
            f"diffusion: hf:{repository} is not in the local cache {HF_HUB_CACHE} and cannot be downloaded "
            f"({told(error)}); where there is a network, run `hf download {repository}{option}` and copy the cache "
            f"here, or `hf download {repository}{option} --local-dir FOLDER` and give the folder as prior"
        ) from error


def _read(path: Path) -> dict[str, Any]:
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {told(error)}") from error
    if not isinstance(read, dict):
        raise DataError(f"{path} wanted a JSON object, got a {type(read).__name__}")
    return read
