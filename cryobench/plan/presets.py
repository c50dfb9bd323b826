"""Presets: named tuned parameters of solvers, `dct@pixel-c4`, with the search and the validation images behind them.

A preset is a file NAME.yaml in the folder `presets`, in that of $CRYOBENCH_PRESETS, or in a given one. It holds one
setting per solver. A setting is never scored on its validation images.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from cryobench.errors import (
    CryobenchError,
    ResultsError,
    SelectionError,
    SpecError,
    UnknownName,
    quoted,
    reason_of,
    shortened,
)
from cryobench.files import acquire_lock, whole_file
from cryobench.plan.yaml_text import load
from cryobench.registry import Registry, did_you_mean
from cryobench.spec import Spec, as_text, fields_of, first_field, parse

VARIABLE = "CRYOBENCH_PRESETS"
FOLDER = "presets"
_VIEWS = ("size", "invert", "as_stack", "data_root")
"""Parameters of a source that do not change which image it is."""


@dataclass(frozen=True)
class Validation:
    """Validation images of a setting. source: spec of their source. label: its name in tables. images, sha256: name and
    digest of each image."""

    source: str
    label: str
    images: tuple[str, ...]
    sha256: tuple[str, ...]


@dataclass(frozen=True)
class Setting:
    """The setting of one solver in a preset. parameters: text by key, as in a spec. made: description of the search, as
    plain data."""

    solver: str
    parameters: Mapping[str, str]
    validation: tuple[Validation, ...]
    made: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Chosen:
    """A solver of a run: the component, its name in tables, and its preset, if any."""

    solver: Any
    label: str
    preset: str | None = None
    validation: tuple[Validation, ...] = ()

    @property
    def tuned_on(self) -> frozenset[str]:
        """The digests of the validation images."""
        return frozenset(digest for part in self.validation for digest in part.sha256)


def presets_folder(given: str | None = None) -> Path:
    """The folder of presets: the given one, else $CRYOBENCH_PRESETS, else `presets`."""
    return Path(given or os.environ.get(VARIABLE) or FOLDER).expanduser()


def preset_file(name: str, folder: Path) -> Path:
    """The file of a preset. Raises `SpecError` for an invalid name."""
    if parse(name) != Spec(name):
        raise SpecError(f"the name of a preset must be a word such as pixel-c4, got {quoted(name)}")
    return folder / f"{name}.yaml"


# -------------------------------------------------------------------------------------------------------------- parsing


def choose(text: str, registry: Registry, folder: Path) -> Chosen:
    """The solver of a spec or preset, `dct@pixel-c4`. Stated parameters override the preset: `dct:lam=0.1@pixel-c4`."""
    spec = parse(text)
    if spec.after is None:
        solver = registry.make("solvers", spec)
        return Chosen(solver, str(registry.spec_of(solver)))
    if spec.after != Spec(spec.after.name):
        raise SpecError(f"{quoted(text)}: expected the name of a preset after '@', such as pixel-c4")
    name, stated = spec.after.name, stated_by(spec, registry.get("solvers", spec.name))
    setting = _setting_of(spec.name, name, folder)
    kept = {key: value for key, value in setting.parameters.items()
            if not any(key == own or key.startswith(f"{own}.") for own in stated)}  # fmt: skip
    try:
        solver = registry.make("solvers", Spec(spec.name, None, tuple((kept | stated).items())))
    except CryobenchError as error:
        raise type(error)(f"{quoted(text)}: {error}") from error
    label = dataclasses.replace(_shown(registry, solver, stated), after=spec.after)
    return Chosen(solver, str(label), name, setting.validation)


def stated_by(spec: Spec, cls: type) -> dict[str, str]:
    """The parameters that a spec states, text by key: the bare first value under the name of the field it binds."""
    first = first_field(cls)
    bare = {first.name: spec.value} if first is not None and spec.value is not None else {}
    return bare | dict(spec.params)


def parameters_of(registry: Registry, component: Any, keys: Iterable[str]) -> dict[str, str]:
    """The text of these parameters of a component, in field order, with nested parameters that are not defaults."""
    cls = type(component)
    short, full = (stated_by(registry.spec_of(component, full=whole), cls) for whole in (False, True))
    found: dict[str, str] = {}
    for key in keys:
        inside = {name: text for name, text in short.items() if name == key or name.startswith(f"{key}.")}
        found |= inside or {key: full[key]}
    return {name: found[name] for name in full if name in found}


def _shown(registry: Registry, solver: Any, stated: Iterable[str]) -> Spec:
    """The spec of a solver in the format of `Registry.spec_of`, with these parameters only."""
    items = parameters_of(registry, solver, stated)
    bare = {
        field.name for field in fields_of(type(solver))[:1] if not (field.kind or field.by_name) and field.name in items
    }
    value = items.pop(bare.pop()) if bare else None
    return Spec(registry.origin_of(type(solver)).name, value, tuple(items.items()))


def _setting_of(solver: str, name: str, folder: Path) -> Setting:
    path = preset_file(name, folder)
    if not path.is_file():
        hint = did_you_mean(name, [file.stem for file in sorted(folder.glob("*.yaml"))])
        raise UnknownName(f"no preset {quoted(name)} in {folder}; {hint} (`cryobench tune` creates presets)")
    settings = read_preset(path)
    if solver not in settings:
        raise UnknownName(f"the preset {name!r} has no setting for {solver!r}; {did_you_mean(solver, settings)}")
    return settings[solver]


# ---------------------------------------------------------------------------------------------------- validation images


def source_identity(source: Spec, registry: Registry) -> str:
    """The spec of a data source without size, sign and location, which do not change which images it has."""
    spec = registry.spec_of(registry.make("sources", source), full=True)
    return str(dataclasses.replace(spec, params=tuple(item for item in spec.params if item[0] not in _VIEWS)))


def check_unseen(
    chosen: Chosen, source: Spec, label: str, images: Sequence[str], sha256: Sequence[str] | None, registry: Registry
) -> None:
    """Raise `SelectionError` if one of these images is a validation image of the setting.

    Images are compared by digest, unless digests are not known (sha256 is None). Those of sources other than files are
    also compared by source and number, which detects them at another size or sign; a file of the same name may hold
    other images.
    """
    if sha256 is not None:
        check_not_among(chosen.tuned_on, sha256, images, chosen.label, label)
    made = None if source.name == "file" else source_identity(source, registry)
    numbers = {number for part in chosen.validation if part.source == made for number in part.images}
    check_not_among(numbers, images, images, chosen.label, label)


def check_not_among(tuned_on: Set[str], marks: Sequence[str], images: Sequence[str], solver: str, label: str) -> None:
    """Raise `SelectionError` for the first of these images whose mark (digest or number) is that of an image that a
    preset was tuned on. solver: its spec, SOLVER@PRESET. label: the name of the images' source."""
    for mark, image in zip(marks, images, strict=True):
        if mark in tuned_on:
            raise SelectionError(
                f"{solver}: image {image} of {label} was used to tune the preset "
                f"{solver.rpartition('@')[2]}; give other --images, or tune on others"
            )


# ---------------------------------------------------------------------------------------------------------------- files


def read_preset(path: Path) -> dict[str, Setting]:
    """The settings of a preset by solver. Raises `ResultsError` for an invalid file."""
    try:
        solvers = load(path)["solvers"]
        return {solver: _setting(solver, found) for solver, found in solvers.items()}
    except OSError as error:
        raise ResultsError(f"cannot read the preset {path}: {error.strerror}") from error
    except (yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ResultsError(
            f"{path} is not a preset: {shortened(reason_of(error))}; `cryobench tune` creates presets"
        ) from error


def add_setting(setting: Setting, name: str, folder: Path) -> Path:
    """Save a solver's setting to a preset, replacing an earlier one; settings of other solvers are kept.

    The file is replaced atomically, by one process at a time.
    """
    path = preset_file(name, folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with acquire_lock(folder / f".{name}.lock"):
            settings = (read_preset(path) if path.exists() else {}) | {setting.solver: setting}
            with whole_file(path) as temporary:
                temporary.write_text(_as_yaml(name, settings), encoding="utf-8")
    except OSError as error:
        raise ResultsError(f"cannot write the preset {path}: {error.strerror}") from error
    return path


def _setting(solver: str, found: Mapping[str, Any]) -> Setting:
    for key, value in found["parameters"].items():
        if not isinstance(value, str | bool | int | float):
            raise ValueError(f"{solver}: {key} must be one value, got {quoted(str(value))}")
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
    """The text as a number if that converts back to the same text, else the text."""
    for kind in (int, float):
        try:
            if as_text(kind(text)) == text:
                return kind(text)
        except ValueError:
            continue
    return text
