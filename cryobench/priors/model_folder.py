"""Locating a diffusion model: in a folder, or on the Hugging Face hub and its local cache.

    ROOT/model_index.json                              a diffusers pipeline
    ROOT/unet/config.json                              the network
    ROOT/unet/diffusion_pytorch_model.safetensors      its weights; also shards with an index, .fp16, or .bin
    ROOT/scheduler/scheduler_config.json               its noise schedule
    ROOT/cryobench.json                                the card that `cryobench train` writes

The network may be in ROOT itself, and so may the schedule. This module imports neither torch nor diffusers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryobench.errors import CryobenchError, DataError, ParameterError, described
from cryobench.io.hub import TIMEOUT, Repository

CARD = "cryobench.json"
HUB = "hf:"
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_SCHEDULES = ("scheduler/scheduler_config.json", "scheduler_config.json")
_WEIGHTS = re.compile(
    r"diffusion_pytorch_model(\.(?P<variant>[\w-]+?))?(-\d+-of-(?P<shards>\d+))?\.(?P<form>safetensors|bin)"
)


@dataclass(frozen=True)
class Layout:
    """The files of a model, as paths relative to its root.

    config: of the network. weights: its one file, or its shards in order. schedule: None for a network alone. index: of
    the shards. variant: of the weights, such as fp16.
    """

    config: str
    weights: tuple[str, ...]
    schedule: str | None
    index: str | None = None
    variant: str | None = None

    @property
    def pickled(self) -> bool:
        """Whether the weights are pickles."""
        return self.weights[0].endswith(".bin")

    @property
    def surely_complete(self) -> bool:
        """Whether no file can be missing: a network in `unet/` belongs to a pipeline, which has a schedule."""
        return self.schedule is not None or "/" not in self.config


@dataclass(frozen=True)
class ModelFolder:
    """A model on disk. Its files are read at every access, since they may change while a process runs."""

    root: Path
    layout: Layout

    @property
    def weights(self) -> tuple[Path, ...]:
        """The files of the weights."""
        return tuple(self.root / name for name in self.layout.weights)

    @property
    def unet_config(self) -> Mapping[str, Any]:
        """The configuration of the `UNet2DModel`. Raises `DataError` for another class."""
        path = self.root / self.layout.config
        config = _read(path)
        if config.get("_class_name") != "UNet2DModel":
            raise DataError(
                f"{path} is the configuration of a {config.get('_class_name')}; expected a diffusers UNet2DModel"
            )
        return config

    @property
    def scheduler_config(self) -> Mapping[str, Any]:
        """The configuration of its noise schedule; empty if there is none."""
        return _read(self.root / self.layout.schedule) if self.layout.schedule else {}

    @property
    def card(self) -> Mapping[str, Any]:
        """The card that `cryobench train` wrote; empty for other models."""
        path = self.root / CARD
        return _read(path) if path.exists() else {}

    @property
    def stamp(self) -> tuple[tuple[int, int, int], ...]:
        """Times, sizes and inodes of its files, which change when a file is replaced."""
        names = [self.layout.config, *self.layout.weights, *([self.layout.schedule] if self.layout.schedule else [])]
        try:
            stats = [(self.root / name).stat() for name in names]
        except OSError as error:
            raise DataError(f"the model in {self.root} cannot be read: {described(error)}") from error
        return tuple((stat.st_mtime_ns, stat.st_size, stat.st_ino) for stat in stats)

    def check_weights(self) -> None:
        """Raise `DataError` for truncated or invalid safetensors files.

        Reads their headers only and does not import diffusers, so that a run fails before it starts.
        """
        if self.layout.pickled:
            return
        from safetensors import safe_open

        for path in self.weights:
            try:
                with path.open("rb") as file:
                    if file.read(12) == b"version http":
                        raise DataError(f"{path} is a Git LFS pointer, not the weights; run `git lfs pull` there")
                with safe_open(path, framework="numpy"):
                    pass
            except CryobenchError:
                raise
            except Exception as error:  # the exception of safetensors is neither an OSError nor a ValueError
                raise DataError(
                    f"{path} cannot be read as safetensors ({described(error)}); it may be truncated: download it again"
                ) from error


def find_model(source: str, *, base: Path | None = None, revision: str = "main", pickle: bool = False) -> ModelFolder:
    """The model in a folder, or in the repository hf:OWNER/NAME. A relative folder starts at `base`, by default the
    current folder.

    Raises `DataError` where there is no readable model, `ParameterError` for an invalid repository name.
    """
    if source.startswith(HUB):
        name = source.removeprefix(HUB)
        if not _REPOSITORY.fullmatch(name):
            raise ParameterError(f"diffusion: expected hf:OWNER/NAME, such as hf:owner/ddpm-128, got {source!r}")
        return _on_hub(Repository(name, revision=revision), pickle)
    try:
        root = (base or Path.cwd()) / Path(source).expanduser()
    except (OSError, RuntimeError) as error:  # a current folder that was removed; a ~user that does not exist
        raise DataError(f"diffusion: the folder {source} cannot be found: {described(error)}") from error
    if not root.is_dir():
        hint = f"; for the repository on the hub, give diffusion:hf:{source}" if _REPOSITORY.fullmatch(source) else ""
        raise DataError(f"diffusion: {source} is {'a file' if root.is_file() else 'not a folder'}; give embedded, "
                        f"the folder of a diffusers model, or hf:OWNER/NAME{hint}")  # fmt: skip
    return ModelFolder(root, layout_of(_files(root), source, pickle))


def layout_of(names: Iterable[str], source: str, pickle: bool) -> Layout:
    """The files of a model among these paths relative to its root, chosen as diffusers does.

    Safetensors are preferred to pickles, weights without a variant to those with one, and shards with an index to one
    file. source: the name of the model in messages. Raises `DataError` where there is no complete network.
    """
    names = set(names)
    config = next((path for path in ("unet/config.json", "config.json") if path in names), None)
    if config is None:
        raise DataError(f"diffusion: {source} is not a diffusers model: it lacks unet/config.json and config.json")
    folder = config.removesuffix("config.json")
    # by form, variant and number of shards, in the order of preference
    found: dict[tuple[bool, str, int], list[str]] = {}
    for name in sorted(names):
        match = _WEIGHTS.fullmatch(name.removeprefix(folder)) if name.startswith(folder) else None
        if match:
            key = (match["form"] == "bin", match["variant"] or "", int(match["shards"] or 1))
            found.setdefault(key, []).append(name)
    whole = []
    for (pickled, variant, shards), files in sorted(found.items()):
        index = f"{folder}diffusion_pytorch_model.{'bin' if pickled else 'safetensors'}.index"
        index += f".{variant}.json" if variant else ".json"
        sharded = shards > 1
        # diffusers reads the shards if there is an index
        if len(files) == shards and (index in names) == sharded:
            whole.append((pickled, variant or None, index if sharded else None, files))
    for pickled, variant, index, files in whole:
        if pickle or not pickled:
            schedule = next((path for path in _SCHEDULES if path in names), None)
            return Layout(config, tuple(files), schedule, index, variant)
    if whole:
        raise DataError(
            f"diffusion: the weights of {source} are a pickle, {whole[0][3][0]}, which can run code when it is read; "
            "convert it to safetensors, or give pickle=true if you trust the source"
        )
    if found:
        (_, _, shards), files = min(found.items())
        raise DataError(f"diffusion: the weights of {source} are incomplete: it has {len(files)} of {shards} files, "
                        f"{', '.join(files)}; expected one file, or all shards and their index")  # fmt: skip
    raise DataError(f"diffusion: {source} has no weights; expected {folder}diffusion_pytorch_model.safetensors")


def _on_hub(repository: Repository, pickle: bool) -> ModelFolder:
    """The model in the local cache; the missing files of the model are downloaded first."""
    source, lack = f"hf:{repository.name}", ""
    root = _snapshot(repository)
    if root is not None:
        try:
            layout = layout_of(_files(root), source, pickle)
            if layout.surely_complete:
                return ModelFolder(root, layout)
            lack = f"diffusion: {source} has a network but no {_SCHEDULES[0]}"
        except DataError as error:
            lack = str(error)
    try:
        import huggingface_hub

        # a request of our own, since a download without an answer is retried for minutes
        info = huggingface_hub.HfApi().model_info(repository.name, revision=repository.revision, timeout=TIMEOUT)
        names = {sibling.rfilename for sibling in info.siblings or ()}
        layout = layout_of(names, source, pickle)
        parts = [layout.config, *layout.weights, *filter(None, [layout.index]), *_SCHEDULES, "model_index.json", CARD]
        root = Path(huggingface_hub.snapshot_download(repository.name, revision=repository.revision,
                                                      allow_patterns=parts, etag_timeout=TIMEOUT))  # fmt: skip
    except CryobenchError:
        raise
    except Exception as error:  # from the hub's client, the HTTP library or the disk
        command = f"hf download {repository.name}{repository.revision_option}"
        fetch = (
            f"run `{command}` and copy the cache here, or `{command} --local-dir FOLDER` and give the folder as prior"
        )
        raise repository.refused(f"diffusion: {source}", error, fetch=fetch, lack=lack) from error
    return ModelFolder(root, layout_of(_files(root), source, pickle))


def _snapshot(repository: Repository) -> Path | None:
    """The folder of the cache with files of this revision, or None."""
    for name in ("unet/config.json", "config.json", "model_index.json", *_SCHEDULES):
        found = repository.cached(name)
        if found is not None:
            return found.parents[name.count("/")]
    return None


def _files(root: Path) -> set[str]:
    """The files of a folder and of its subfolders `unet` and `scheduler`, as relative paths, without broken links."""
    return {path.relative_to(root).as_posix() for pattern in ("*", "unet/*", "scheduler/*")
            for path in root.glob(pattern) if path.is_file()}  # fmt: skip


def _read(path: Path) -> dict[str, Any]:
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {described(error)}") from error
    if not isinstance(read, dict):
        raise DataError(f"{path}: expected a JSON object, got a {type(read).__name__}")
    return read
