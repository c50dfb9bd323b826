"""Presets: tuned parameters of solvers under a name, `dct@pixel-c4`, with how they were found and on which images.

A preset is a file NAME.yaml in the folder `presets`, in that of $CRYOBENCH_PRESETS, or in the one stated. It holds a
setting for each solver that was tuned into it. Nothing is scored with a setting on the images it was chosen on.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from cryobench.errors import CryobenchError, ResultsError, SelectionError, SpecError, UnknownName, said
from cryobench.files import exclusively, whole_file
from cryobench.registry import Registry, did_you_mean
from cryobench.spec import Spec, as_text, fields_of, parse

if TYPE_CHECKING:
    import numpy as np

VARIABLE = "CRYOBENCH_PRESETS"
FOLDER = "presets"
_VIEWS = ("size", "invert", "as_stack", "data_root")
"""Parameters of a source under which an image stays that image."""


@dataclass(frozen=True)
class Validation:
    """Images that a setting was chosen on: the spec of their source, how tables name it, and of each image its name
    there and its digest."""

    source: str
    label: str
    images: tuple[str, ...]
    sha256: tuple[str, ...]


@dataclass(frozen=True)
class Setting:
    """What a preset holds for one solver. parameters: text by key, as in a spec. made: how they were found, for people
    and tables: plain data."""

    solver: str
    parameters: Mapping[str, str]
    validation: tuple[Validation, ...]
    made: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Chosen:
    """A solver as a run asked for it: the component, its name in tables, and the preset it is of, if it is of one."""

    solver: Any
    label: str
    preset: str | None = None
    validation: tuple[Validation, ...] = ()


def presets_folder(given: str | None = None) -> Path:
    """Where presets lie: where stated, else in $CRYOBENCH_PRESETS, else in `presets`."""
    return Path(given or os.environ.get(VARIABLE) or FOLDER).expanduser()


def preset_file(name: str, folder: Path) -> Path:
    """The file of a preset. Raises `SpecError` for what cannot stand behind `@`."""
    if parse(name) != Spec(name):
        raise SpecError(f"a preset's name is a word such as pixel-c4, got {name!r}")
    return folder / f"{name}.yaml"


# ------------------------------------------------------------------------------------------------- what a spec means


def choose(text: str, registry: Registry, folder: Path) -> Chosen:
    """The solver of a spec; for `dct@pixel-c4` that of a preset. Stated parameters win: `dct:lam=0.1@pixel-c4`."""
    spec = parse(text)
    if spec.after is None:
        solver = registry.make("solvers", spec)
        return Chosen(solver, str(registry.spec_of(solver)))
    if spec.after != Spec(spec.after.name):
        raise SpecError(f"{text!r}: behind the '@' of a solver goes the name of a preset, such as pixel-c4")
    name, stated = spec.after.name, stated_by(spec, registry.get("solvers", spec.name))
    setting = _setting_of(spec.name, name, folder)
    kept = {key: value for key, value in setting.parameters.items()
            if not any(key == own or key.startswith(f"{own}.") for own in stated)}  # fmt: skip
    try:
        solver = registry.make("solvers", Spec(spec.name, None, tuple((kept | stated).items())))
    except CryobenchError as error:
        raise type(error)(f"{text!r}: {error}") from error
    label = dataclasses.replace(_shown(registry, solver, stated), after=spec.after)
    return Chosen(solver, str(label), name, setting.validation)


def stated_by(spec: Spec, cls: type) -> dict[str, str]:
    """The parameters that a spec states, text by key: the bare first value under the name of the field it binds."""
    first = {} if spec.value is None else {field.name: spec.value for field in fields_of(cls)[:1]}
    return first | dict(spec.params)


def parameters_of(registry: Registry, component: Any, keys: Iterable[str]) -> dict[str, str]:
    """The text of these parameters of a component, in its own order, with what is not the default inside them."""
    cls = type(component)
    short, full = (stated_by(registry.spec_of(component, full=whole), cls) for whole in (False, True))
    found: dict[str, str] = {}
    for key in keys:
        inside = {name: text for name, text in short.items() if name == key or name.startswith(f"{key}.")}
        found |= inside or {key: full[key]}
    return {name: found[name] for name in full if name in found}


def _shown(registry: Registry, solver: Any, stated: Iterable[str]) -> Spec:
    """The spec of a solver, as `Registry.spec_of` would write it, with these parameters and no others."""
    items = parameters_of(registry, solver, stated)
    bare = {field.name for field in fields_of(type(solver))[:1] if field.kind is None and field.name in items}
    value = items.pop(bare.pop()) if bare else None
    return Spec(registry.origin_of(type(solver)).name, value, tuple(items.items()))


def _setting_of(solver: str, name: str, folder: Path) -> Setting:
    path = preset_file(name, folder)
    if not path.is_file():
        there = did_you_mean(name, [file.stem for file in sorted(folder.glob("*.yaml"))])
        raise UnknownName(f"no preset {name!r} in {folder}; {there} (`cryobench tune` makes them)")
    settings = read_preset(path)
    if solver not in settings:
        raise UnknownName(f"the preset {name!r} has no setting for {solver!r}; {did_you_mean(solver, settings)}")
    return settings[solver]


# ------------------------------------------------------------------------------------------------ images seen before


def image_digest(image: np.ndarray) -> str:
    """SHA-256 of an image [*S], float32 scaled from its own limits to [-1, 1]: the same in every file and units."""
    return hashlib.sha256(repr((1, *image.shape)).encode() + image.tobytes()).hexdigest()


def source_identity(source: Spec, registry: Registry) -> str:
    """A data source by what makes its images, without how they are looked at: its size, its sign, where they lie."""
    spec = registry.spec_of(registry.make("sources", source), full=True)
    return str(dataclasses.replace(spec, params=tuple(item for item in spec.params if item[0] not in _VIEWS)))


def check_unseen(
    chosen: Chosen, source: Spec, label: str, images: Sequence[str], sha256: Sequence[str], registry: Registry
) -> None:
    """Raise `SelectionError` where a setting was chosen on one of these images.

    It is found by its digest, and by source and number where the source makes its images (files are too easily
    others of the same name), so that another size or sign does not hide it.
    """
    made = None if source.name == "file" else source_identity(source, registry)
    for part in chosen.validation:
        digests = set(part.sha256)
        numbers = set(part.images) if part.source == made else set()
        for image, digest in zip(images, sha256, strict=True):
            if digest in digests or image in numbers:
                raise SelectionError(
                    f"{chosen.label}: image {image} of {label} is one of those that the preset {chosen.preset} was "
                    "tuned on; give --images that it was not, or tune on others"
                )


# --------------------------------------------------------------------------------------------------------- the file


def read_preset(path: Path) -> dict[str, Setting]:
    """The settings of a preset by solver. Raises `ResultsError` for a file that is none."""
    try:
        solvers = yaml.safe_load(path.read_text(encoding="utf-8"))["solvers"]
        return {solver: _setting(solver, found) for solver, found in solvers.items()}
    except OSError as error:
        raise ResultsError(f"cannot read the preset {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ResultsError(f"{path} is no preset: {said(error)}; `cryobench tune` makes them") from error


def add_setting(setting: Setting, name: str, folder: Path) -> Path:
    """Put a solver's setting into a preset, in place of an earlier one; those of other solvers stay.

    The file is written whole, and by one process at a time.
    """
    path = preset_file(name, folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with exclusively(folder / f".{name}.lock"):
            settings = (read_preset(path) if path.exists() else {}) | {setting.solver: setting}
            with whole_file(path) as beside:
                beside.write_text(_as_yaml(name, settings), encoding="utf-8")
    except OSError as error:
        raise ResultsError(f"cannot write the preset {path}: {error.strerror}") from error
    return path


def _setting(solver: str, found: Mapping[str, Any]) -> Setting:
    for key, value in found["parameters"].items():
        if not isinstance(value, str | bool | int | float):
            raise ValueError(f"{solver}: {key} wants one value, got {value!r}")
    validation = tuple(
        Validation(part["source"], part["label"], tuple(map(str, part["images"])), tuple(map(str, part["sha256"])))
        for part in found["validation"]
    )
    parameters = {key: as_text(value) for key, value in found["parameters"].items()}
    return Setting(solver, parameters, validation, found["made"])


def _as_yaml(name: str, settings: Mapping[str, Setting]) -> str:
    solvers = {
        solver: {
            "parameters": {key: _plain(text) for key, text in setting.parameters.items()},
            "made": dict(setting.made),
            "validation": [
                {"source": part.source, "label": part.label, "images": list(part.images), "sha256": list(part.sha256)}
                for part in setting.validation
            ],
        }
        for solver, setting in settings.items()
    }
    head = f"# Made by `cryobench tune`. Use a setting as SOLVER@{name}.\n"
    return head + yaml.safe_dump({"solvers": solvers}, sort_keys=False, width=120)


def _plain(text: str) -> Any:
    """A number where the text is one, so that the file reads well; it must come back as it was."""
    for kind in (int, float):
        try:
            if as_text(kind(text)) == text:
                return kind(text)
        except ValueError:
            continue
    return text
