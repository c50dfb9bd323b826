"""Locating a diffusion model: in a folder, or on the Hugging Face hub and its local cache.

    ROOT/model_index.json                              a diffusers pipeline
    ROOT/unet/config.json                              the network
    ROOT/unet/diffusion_pytorch_model.safetensors      its weights; also shards with an index, .fp16, or .bin
    ROOT/scheduler/scheduler_config.json               its noise schedule
    ROOT/cryobench.json                                the card that `cryobench train` writes

The network may be in ROOT itself, and so may the schedule. A checkpoint of a diffusers training run has the averaged
weights in `unet_ema/`, and its schedule is one or two folders above. This module imports neither torch nor diffusers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cryobench.errors import CryobenchError, DataError, ParameterError, described
from cryobench.file_state import FileState
from cryobench.io.hub import TIMEOUT, Repository
from cryobench.priors.schedule import STATED, betas, completed, lacks, prediction

CARD = "cryobench.json"
HUB = "hf:"
AVERAGED = "unet_ema"
"""The folder of the averaged weights in a checkpoint of diffusers' training scripts."""
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
SCHEDULES = ("scheduler/scheduler_config.json", "scheduler_config.json")
_WEIGHTS = re.compile(
    r"diffusion_pytorch_model(\.(?P<variant>[\w-]+?))?(-\d+-of-(?P<shards>\d+))?\.(?P<form>safetensors|bin)"
)


@dataclass(frozen=True)
class Layout:
    """The files of a model, as paths relative to its root.

    config: of the network. weights: its one file, or its shards in order. schedule: None for a network alone; it starts
    with `../` in a folder above. index: of the shards. variant: of the weights, such as fp16. beside: the folder of
    other weights of the network, raw or averaged, that are not used.
    """

    config: str
    weights: tuple[str, ...]
    schedule: str | None
    index: str | None = None
    variant: str | None = None
    beside: str | None = None

    @property
    def pickled(self) -> bool:
        """Whether the weights are pickles."""
        return self.weights[0].endswith(".bin")


@dataclass(frozen=True)
class ModelFolder:
    """A model on disk. Its files are read at every access, since they may change while a process runs.

    stated: values of its noise schedule that the user states, for those that its files lack. source: its name in
    messages.
    """

    root: Path
    layout: Layout
    stated: tuple[tuple[str, Any], ...] = ()
    source: str = field(default="", compare=False)

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
        """The configuration of its noise schedule, with the stated values. Raises `DataError` if there is none."""
        read = _read(self.root / self.layout.schedule) if self.layout.schedule else {}
        try:
            config = completed(read, dict(self.stated))
        except DataError as error:
            raise DataError(f"diffusion: {self.source} {error}") from error
        if not read and lacks(config):
            where = "" if self.source.startswith(HUB) else " or in the two folders above"
            raise DataError(
                f"diffusion: {self.source} has a network without a noise schedule: there is no {SCHEDULES[0]} of this "
                f"network in it{where}; add that of its training, or give {STATED}"
            )
        return config

    @property
    def card(self) -> Mapping[str, Any]:
        """The card that `cryobench train` wrote, which is beside the schedule; empty for other models."""
        above = "../" * (self.layout.schedule or "").count("../")
        path = self.root / above / CARD
        return _read(path) if path.exists() else {}

    @property
    def details(self) -> dict[str, Any]:
        """The files that are used, relative to the folder, and the noise schedule that they or the user state."""
        config, layout = self.scheduler_config, self.layout
        return {
            "weights": list(layout.weights),
            "schedule_file": layout.schedule,
            "schedule": betas(config),
            "predicts": prediction(config),
        }

    @property
    def notes(self) -> list[str]:
        """What was chosen or found where the folder alone does not determine it, for the user, each one line."""
        layout, said = self.layout, []
        if layout.beside is not None:
            used, other = Path(layout.config).parent.name, layout.beside
            said.append(f"the weights are those of {used}/, not of {other}/; give the folder {other} for those")
        if layout.variant is not None:
            said.append(f"the weights are those of the variant {layout.variant}")
        if layout.schedule is not None and layout.schedule.startswith("../"):
            config = self.scheduler_config
            values = betas(config)
            steps = (
                values.get("num_train_timesteps") if not values.get("trained_betas") else len(values["trained_betas"])
            )
            said.append(
                f"the noise schedule is that of {(self.root / layout.schedule).resolve()}: "
                f"{values.get('beta_schedule', 'trained_betas')}, {steps} steps, predicts {prediction(config)}"
            )
        return said

    @property
    def stamp(self) -> tuple[FileState, ...]:
        """The states of its files, which change when a file is replaced."""
        names = [self.layout.config, *self.layout.weights, *([self.layout.schedule] if self.layout.schedule else [])]
        return tuple(FileState.of(self.root / name, "model file") for name in names)

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


def find_model(
    source: str,
    *,
    base: Path | None = None,
    revision: str = "main",
    pickle: bool = False,
    stated: Mapping[str, Any] | None = None,
) -> ModelFolder:
    """The model in a folder, or in the repository hf:OWNER/NAME. A relative folder starts at `base`, by default the
    current folder. stated: values of its noise schedule, for those that its files lack.

    Raises `DataError` where there is no readable model, `ParameterError` for an invalid repository name.
    """
    if source.startswith(HUB):
        name = source.removeprefix(HUB)
        if not _REPOSITORY.fullmatch(name):
            raise ParameterError(f"diffusion: expected hf:OWNER/NAME, such as hf:owner/ddpm-128, got {source!r}")
        return _on_hub(Repository(name, revision=revision), pickle, tuple((stated or {}).items()))
    try:
        root = (base or Path.cwd()) / Path(source).expanduser()
    except (OSError, RuntimeError) as error:  # a current folder that was removed; a ~user that does not exist
        raise DataError(f"diffusion: the folder {source} cannot be found: {described(error)}") from error
    if not root.is_dir():
        named = _REPOSITORY.fullmatch(source) and not source.startswith(".")
        hint = f"; for the repository on the hub, give diffusion:hf:{source}" if named else ""
        if root.is_file() and (root.parent / "unet").is_dir():
            hint = f"; the model of its folder is {root.parent}"
        raise DataError(f"diffusion: {source} is {'a file' if root.is_file() else 'not a folder'}; give embedded, "
                        f"the folder of a diffusers model, or hf:OWNER/NAME{hint}")  # fmt: skip
    layout = layout_of(_files(root), source, pickle)
    if layout.schedule is None:
        layout = replace(layout, schedule=_schedule_above(root, layout))
    return ModelFolder(root, layout, tuple((stated or {}).items()), source)


def _schedule_above(root: Path, layout: Layout) -> str | None:
    """The schedule of the training run whose network or checkpoint is in this folder, relative to it, or None.

    A run is a folder, at most two levels above, with a schedule in `scheduler/`. It is not taken from a pipeline whose
    network has another configuration.
    """
    config = _read(root / layout.config)
    for above in ("..", "../.."):
        run = root / above
        if not (run / SCHEDULES[0]).is_file():
            continue
        network = run / "unet" / "config.json"
        theirs = _read(network) if network.is_file() else {}
        # the configuration of averaged weights has further values
        if all(config.get(name, value) == value for name, value in theirs.items() if not name.startswith("_")):
            return f"{above}/{SCHEDULES[0]}"
        return None
    return None


def layout_of(names: Iterable[str], source: str, pickle: bool) -> Layout:
    """The files of a model among these paths relative to its root, chosen as diffusers does.

    Safetensors are preferred to pickles, weights without a variant to those with one, and shards with an index to one
    file. In a pipeline the network is that of `unet/`, in a checkpoint the averaged one of `unet_ema/`. source: the
    name of the model in messages. Raises `DataError` where there is no complete network.
    """
    names = set(names)
    config, beside = _network_of(names)
    if config not in names:
        lack = config if config != "config.json" else "unet/config.json and config.json"
        raise DataError(f"diffusion: {source} is not a diffusers model: it lacks {lack}")
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
            schedule = next((path for path in SCHEDULES if path in names), None)
            return Layout(config, tuple(files), schedule, index, variant, beside)
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


def _network_of(names: set[str]) -> tuple[str, str | None]:
    """The configuration of the network, and the folder beside it of the raw or averaged weights that are not used."""
    raw = next((path for path in ("unet/config.json", "config.json") if path in names), None)
    averaged = any(name.startswith(f"{AVERAGED}/") for name in names)
    if not averaged or raw == "config.json":
        return raw or "config.json", None
    if raw is not None and "model_index.json" in names:
        return raw, AVERAGED if f"{AVERAGED}/config.json" in names else None
    return f"{AVERAGED}/config.json", "unet" if raw is not None else None


def _on_hub(repository: Repository, pickle: bool, stated: tuple[tuple[str, Any], ...]) -> ModelFolder:
    """The model in the local cache; the missing files of the model are downloaded first."""
    source, lack = f"hf:{repository.name}", ""
    root = _snapshot(repository)
    if root is not None:
        try:
            layout = layout_of(_files(root), source, pickle)
            if layout.schedule is not None or not lacks(dict(stated)):
                return ModelFolder(root, layout, stated, source)
            lack = f"diffusion: {source} has a network but no {SCHEDULES[0]}"
        except DataError as error:
            lack = str(error)
    try:
        import huggingface_hub

        # a request of our own, since a download without an answer is retried for minutes
        info = huggingface_hub.HfApi().model_info(repository.name, revision=repository.revision, timeout=TIMEOUT)
        names = {sibling.rfilename for sibling in info.siblings or ()}
        layout = layout_of(names, source, pickle)
        parts = [layout.config, *layout.weights, *filter(None, [layout.index]), *SCHEDULES, "model_index.json", CARD]
        parts += [f"{layout.beside}/config.json"] if layout.beside else []
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
    return ModelFolder(root, layout_of(_files(root), source, pickle), stated, source)


def _snapshot(repository: Repository) -> Path | None:
    """The folder of the cache with files of this revision, or None."""
    for name in ("unet/config.json", f"{AVERAGED}/config.json", "config.json", "model_index.json", *SCHEDULES):
        found = repository.cached(name)
        if found is not None:
            return found.parents[name.count("/")]
    return None


def _files(root: Path) -> set[str]:
    """The files of a folder and of its subfolders with parts of a model, as relative paths, without broken links."""
    return {path.relative_to(root).as_posix() for pattern in ("*", "unet/*", f"{AVERAGED}/*", "scheduler/*")
            for path in root.glob(pattern) if path.is_file()}  # fmt: skip


def _read(path: Path) -> dict[str, Any]:
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {described(error)}") from error
    if not isinstance(read, dict):
        raise DataError(f"{path}: expected a JSON object, got a {type(read).__name__}")
    return read
