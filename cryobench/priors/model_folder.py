"""Where a diffusion model lies: a folder or the local cache of the Hugging Face hub; downloaded only where it is not.

    ROOT/model_index.json                              a diffusers pipeline
    ROOT/unet/config.json                              the network
    ROOT/unet/diffusion_pytorch_model.safetensors      its weights; also in shards, as a variant (.fp16), or as .bin
    ROOT/scheduler/scheduler_config.json               its noise schedule
    ROOT/cryobench.json                                what `cryobench train` knows of it

The network may lie in ROOT itself, and so may the schedule. Nothing here imports torch or diffusers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryobench.errors import CryobenchError, DataError, ParameterError, told
from cryobench.io.hub import SECONDS, Repository

CARD = "cryobench.json"
HUB = "hf:"
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_SCHEDULES = ("scheduler/scheduler_config.json", "scheduler_config.json")
_WEIGHTS = re.compile(
    r"diffusion_pytorch_model(\.(?P<variant>[\w-]+?))?(-\d+-of-(?P<shards>\d+))?\.(?P<form>safetensors|bin)"
)


@dataclass(frozen=True)
class Layout:
    """Which files of a model are its parts, as paths from its root.

    config: of the network. weights: its one file, or its shards in order. schedule: None for a network alone.
    """

    config: str
    weights: tuple[str, ...]
    schedule: str | None

    @property
    def pickled(self) -> bool:
        """Whether the weights are pickles."""
        return self.weights[0].endswith(".bin")

    @property
    def surely_whole(self) -> bool:
        """Whether no part can be missing: beside a network in `unet/` there should be a schedule."""
        return self.schedule is not None or "/" not in self.config


@dataclass(frozen=True)
class ModelFolder:
    """A model on disk. Its files are read anew at every question: they may change while a process lives."""

    root: Path
    layout: Layout

    @property
    def weights(self) -> tuple[Path, ...]:
        """The files of the weights."""
        return tuple(self.root / name for name in self.layout.weights)

    @property
    def unet_config(self) -> Mapping[str, Any]:
        """The configuration of the `UNet2DModel`. Raises `DataError` for that of anything else."""
        path = self.root / self.layout.config
        config = _read(path)
        if config.get("_class_name") != "UNet2DModel":
            raise DataError(f"{path} is of a {config.get('_class_name')}; wanted a diffusers UNet2DModel")
        return config

    @property
    def scheduler_config(self) -> Mapping[str, Any]:
        """The configuration of its noise schedule; empty where there is none."""
        return _read(self.root / self.layout.schedule) if self.layout.schedule else {}

    @property
    def card(self) -> Mapping[str, Any]:
        """What `cryobench train` wrote beside it; empty for a model of others."""
        path = self.root / CARD
        return _read(path) if path.exists() else {}

    @property
    def stamp(self) -> tuple[tuple[int, int, int], ...]:
        """When and how its files were last written: another stamp for other files, without reading them."""
        names = [self.layout.config, *self.layout.weights, *([self.layout.schedule] if self.layout.schedule else [])]
        try:
            stats = [(self.root / name).stat() for name in names]
        except OSError as error:
            raise DataError(f"the model in {self.root} cannot be read: {told(error)}") from error
        return tuple((stat.st_mtime_ns, stat.st_size, stat.st_ino) for stat in stats)

    def check_weights(self) -> None:
        """Raise `DataError` for safetensors that are cut short or something else, by their headers alone."""
        if self.layout.pickled:
            return
        from safetensors import safe_open

        for path in self.weights:
            try:
                with path.open("rb") as file:
                    if file.read(12) == b"version http":
                        raise DataError(f"{path} is a pointer of Git LFS and not the weights; run `git lfs pull` there")
                with safe_open(path, framework="numpy"):
                    pass
            except CryobenchError:
                raise
            except Exception as error:  # safetensors has an exception of its own, which is no OSError or ValueError
                raise DataError(
                    f"{path} cannot be read as safetensors ({told(error)}); it may have been cut short: fetch it again"
                ) from error


def find_model(source: str, *, base: Path | None = None, revision: str = "main", pickle: bool = False) -> ModelFolder:
    """The model that a folder or hf:OWNER/NAME names. A relative folder is meant from `base`, or the current folder.

    Raises `DataError` where there is none that can be read, `ParameterError` for a text that names neither.
    """
    if source.startswith(HUB):
        name = source.removeprefix(HUB)
        if not _REPOSITORY.fullmatch(name):
            raise ParameterError(f"diffusion: wanted hf:OWNER/NAME, such as hf:owner/ddpm-128, got {source!r}")
        return _on_hub(Repository(name, revision=revision), pickle)
    try:
        root = (base or Path.cwd()) / Path(source).expanduser()
    except (OSError, RuntimeError) as error:  # a current folder that was removed; a ~user that does not exist
        raise DataError(f"diffusion: the folder {source} cannot be found: {told(error)}") from error
    if not root.is_dir():
        hint = f"; for the repository on the hub, give diffusion:hf:{source}" if _REPOSITORY.fullmatch(source) else ""
        raise DataError(f"diffusion: {source} is {'a file and ' if root.is_file() else ''}no folder; give embedded, "
                        f"the folder of a diffusers model, or hf:OWNER/NAME{hint}")  # fmt: skip
    return ModelFolder(root, layout_of(_files(root), source, pickle))


def layout_of(names: Iterable[str], source: str, pickle: bool) -> Layout:
    """The parts of a model among these paths from its root. Raises `DataError` where there is no whole network.

    Of several weights it takes safetensors before pickles, those without a variant before those with one, and one file
    before shards. source: what messages call the model.
    """
    names = set(names)
    config = next((path for path in ("unet/config.json", "config.json") if path in names), None)
    if config is None:
        raise DataError(f"diffusion: {source} holds no diffusers model: neither unet/config.json nor config.json")
    folder = config.removesuffix("config.json")
    # by form, variant and number of shards, in the order of preference
    found: dict[tuple[bool, str, int], list[str]] = {}
    for name in sorted(names):
        match = _WEIGHTS.fullmatch(name.removeprefix(folder)) if name.startswith(folder) else None
        if match:
            key = (match["form"] == "bin", match["variant"] or "", int(match["shards"] or 1))
            found.setdefault(key, []).append(name)
    whole = [(key, files) for key, files in sorted(found.items()) if len(files) == key[2]]
    for (pickled, _, _), files in whole:
        if pickle or not pickled:
            return Layout(config, tuple(files), next((path for path in _SCHEDULES if path in names), None))
    if whole:
        raise DataError(
            f"diffusion: the weights of {source} are a pickle, {whole[0][1][0]}, which can run code when it is read; "
            "convert it to safetensors, or give pickle=true where you trust it"
        )
    if found:
        (_, _, shards), files = min(found.items())
        raise DataError(f"diffusion: the weights of {source} are not whole: {len(files)} of {shards} shards are there, "
                        f"{', '.join(files)}")  # fmt: skip
    raise DataError(f"diffusion: {source} has no weights: wanted {folder}diffusion_pytorch_model.safetensors")


def _on_hub(repository: Repository, pickle: bool) -> ModelFolder:
    """The model in the local cache, downloaded where it is not there whole. Of a repository no more than its parts."""
    source, lack = f"hf:{repository.name}", ""
    root = _snapshot(repository)
    if root is not None:
        try:
            layout = layout_of(_files(root), source, pickle)
            if layout.surely_whole:
                return ModelFolder(root, layout)
            lack = f"diffusion: {source} has a network but no {_SCHEDULES[0]}"
        except DataError as error:
            lack = str(error)
    try:
        import huggingface_hub

        # asked by hand because a download that gets no answer tries again for minutes
        info = huggingface_hub.HfApi().model_info(repository.name, revision=repository.revision, timeout=SECONDS)
        names = {sibling.rfilename for sibling in info.siblings or ()}
        layout = layout_of(names, source, pickle)
        parts = [layout.config, *layout.weights, *_SCHEDULES, "model_index.json", CARD]
        root = Path(huggingface_hub.snapshot_download(repository.name, revision=repository.revision,
                                                      allow_patterns=parts, etag_timeout=SECONDS))  # fmt: skip
    except CryobenchError:
        raise
    except Exception as error:  # of the hub's client, of the HTTP library below it, of the disk
        command = f"hf download {repository.name}{repository.revision_option}"
        fetch = (
            f"run `{command}` and copy the cache here, or `{command} --local-dir FOLDER` and give the folder as prior"
        )
        raise repository.refused(f"diffusion: {source}", error, fetch=fetch, lack=lack) from error
    return ModelFolder(root, layout_of(_files(root), source, pickle))


def _snapshot(repository: Repository) -> Path | None:
    """The folder of the cache that holds what there is of this revision, None where there is nothing."""
    for name in ("unet/config.json", "config.json", "model_index.json", *_SCHEDULES):
        found = repository.cached(name)
        if found is not None:
            return found.parents[name.count("/")]
    return None


def _files(root: Path) -> set[str]:
    """The files of a folder, of `unet` and of `scheduler` in it, as paths from it. A link to nothing is none."""
    return {path.relative_to(root).as_posix() for pattern in ("*", "unet/*", "scheduler/*")
            for path in root.glob(pattern) if path.is_file()}  # fmt: skip


def _read(path: Path) -> dict[str, Any]:
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {told(error)}") from error
    if not isinstance(read, dict):
        raise DataError(f"{path} wanted a JSON object, got a {type(read).__name__}")
    return read
