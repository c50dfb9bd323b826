"""Lookup of components by name through Python entry points.

Listing names imports nothing; getting a component imports only its plugin. The built-in components
are registered in `pyproject.toml` in the same way as those of other packages. Imports only the standard library.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from importlib.metadata import Distribution, EntryPoint, distributions
from typing import Any, TypeVar

from cryobench.contract import CONTRACT, GROUP, mismatch
from cryobench.errors import (
    CryobenchError,
    DuplicateName,
    PluginError,
    SpecError,
    UnknownName,
    described,
    quoted,
    shortened,
)
from cryobench.spec import COMPOSED, Spec, bind, fields_of, parse, unbind

KINDS = ("operators", "masks", "noises", "priors", "solvers", "metrics", "sources", "objectives", "encoders")
PREFIX = "cryobench."
COMMANDS = f"{PREFIX}commands"
"""The group of plugins that add a command."""
T = TypeVar("T")
importing: Callable[[], AbstractContextManager[None]] = nullcontext
"""A block around the import of each plugin. `global_state` sets it, as it needs more than the standard library."""


@dataclass(frozen=True)
class Origin:
    """The entry point of a component and the distribution that registers it."""

    kind: str
    name: str
    target: str
    distribution: str
    version: str


class Registry:
    """Components by kind and name, from the given entry points. `installed()` is the registry of this environment."""

    def __init__(self, points: Iterable[EntryPoint]):
        self._points: dict[str, dict[str, list[EntryPoint]]] = {kind: {} for kind in KINDS}
        self._contracts: dict[str, str] = {}
        for point in points:
            if point.group == GROUP:
                self._contracts[owner(point)] = point.name
            kind = point.group.removeprefix(PREFIX)
            if kind in self._points and point.group.startswith(PREFIX):
                same_name = self._points[kind].setdefault(point.name, [])
                # a distribution can be listed twice, in two folders of sys.path
                if not any(_origin(kind, point) == _origin(kind, other) for other in same_name):
                    same_name.append(point)
        self._loaded: dict[tuple[str, str], type] = {}
        self._origins: dict[type, Origin] = {}

    def names(self, kind: str) -> list[str]:
        """The registered names of a kind, sorted. Imports nothing."""
        return sorted(self._points[_known_kind(kind)])

    def origins(self, kind: str, name: str) -> list[Origin]:
        """The distributions that register this name; more than one is a conflict. Imports nothing."""
        return [_origin(kind, point) for point in self._points[_known_kind(kind)].get(name, [])]

    def get(self, kind: str, name: str) -> type:
        """The component class of this name; imports only the plugin that registers it.

        Raises `UnknownName`, `DuplicateName` (two distributions register the name) or `PluginError`.
        """
        if (kind, name) not in self._loaded:
            self._loaded[kind, name] = self._load(kind, name)
        return self._loaded[kind, name]

    def _load(self, kind: str, name: str) -> type:
        points = self._points[_known_kind(kind)].get(name, [])
        if not points:
            raise UnknownName(f"no {_singular(kind)} {quoted(name)}; {did_you_mean(name, self.names(kind))}")
        if len(points) > 1:
            owners = " and ".join(_owner(_origin(kind, point)) for point in points)
            raise DuplicateName(
                f"{_singular(kind)} {name!r} is registered by {owners}; uninstall one, or rename its entry point"
            )
        origin = _origin(kind, points[0])
        where = f"{_singular(kind)} {name!r} of {_owner(origin)}"
        reason = mismatch(self._contracts.get(_owner(origin), str(CONTRACT)))
        if reason is not None:
            raise PluginError(f"{_owner(origin)} {reason}")
        process = os.getpid()
        try:
            with importing():
                component = points[0].load()
        except (CryobenchError, KeyboardInterrupt):
            raise
        except BaseException as error:  # a plugin may raise anything, and must not end the program
            moved = isinstance(error, ImportError) and str(error.name).startswith("cryobench.")
            hint = f"; it may be written for a contract other than {CONTRACT}: see docs/plugins.md" if moved else ""
            raise PluginError(f"{where} cannot be imported: {described(error)}{hint}") from error
        finally:
            end_forked(process)
        if not (isinstance(component, type) and dataclasses.is_dataclass(component)):
            raise PluginError(f"{where} must be a frozen dataclass; {origin.target} is {_what(component)}")
        if not component.__dataclass_params__.frozen:  # type: ignore[attr-defined]
            raise PluginError(f"{where} must be a frozen dataclass; write @dataclass(frozen=True) on {origin.target}")
        guarded(f"{where} has annotations that cannot be read", lambda: fields_of(component))
        return component

    def make(self, kind: str, spec: str | Spec) -> Any:
        """The component that a spec describes, with its nested components; for a@b, the composition of the two."""
        spec = parse(spec) if isinstance(spec, str) else spec
        where = f"{_singular(kind)} {quoted(str(spec))}"
        if spec.after is not None:
            if COMPOSED not in self.names(kind):
                shown = shortened(str(spec))
                raise SpecError(
                    f"{shown}: composition with '@' is not available for {kind}; give one {_singular(kind)}"
                )
            outer, inner = self.make(kind, dataclasses.replace(spec, after=None)), self.make(kind, spec.after)
            composed = self.get(kind, COMPOSED)
            return guarded(f"{where} cannot be made", lambda: composed(outer=outer, inner=inner))
        cls = self.get(kind, spec.name)
        component = guarded(f"{where} cannot be made", lambda: bind(cls, spec, self.make, did_you_mean))
        guarded(f"{where} has a parameter that cannot be hashed", lambda: hash(component))
        return component

    def spec_of(self, component: Any, *, full: bool = False) -> Spec:
        """The canonical spec of a component: the values that differ from the defaults, or all values if `full`."""
        where = f"the parameters of {type(component).__name__} cannot be written as a spec"
        return guarded(where, lambda: unbind(component, lambda part: self.origin_of(type(part)).name, full=full))

    def origin_of(self, cls: type) -> Origin:
        """The entry point of a component class and the distribution that registers it."""
        if cls not in self._origins:  # reading a distribution's version parses its metadata
            self._origins[cls] = self._origin_of(cls)
        return self._origins[cls]

    def _origin_of(self, cls: type) -> Origin:
        target = f"{cls.__module__}:{cls.__qualname__}"
        for kind, names in self._points.items():
            for points in names.values():
                for point in points:
                    if self._loaded.get((kind, point.name)) is cls or point.value == target:
                        return _origin(kind, point)
        raise UnknownName(f"{target} is not a registered component; register it through an entry point")


@cache
def installed() -> Registry:
    """The registry of the packages installed in this environment."""
    return Registry(entry_points())


def entry_points() -> Iterator[EntryPoint]:
    """The entry points of cryobench's groups in one pass, which reads the metadata once instead of once per kind."""
    seen = set()
    for distribution in distributions():
        points = [point for point in distribution.entry_points if point.group.startswith(PREFIX)]
        # the name is in the metadata, which is read only for distributions with such entry points
        if points and (name := _identity(distribution)[0]) not in seen:
            seen.add(name)
            yield from points


@cache
def _identity(distribution: Distribution) -> tuple[str, str]:
    """Name and version of a distribution. `importlib.metadata` parses all of the metadata, README included, at each
    access: with 200 plugins that took half of the time of `cryobench list`."""
    header = (distribution.read_text("METADATA") or "").partition("\n\n")[0]
    found = dict(re.findall(r"^(Name|Version): *(.*?)\s*$", header, flags=re.MULTILINE))
    return found.get("Name") or distribution.name, found.get("Version") or distribution.version


def guarded(what: str, call: Callable[[], T]) -> T:
    """The result of a call into a plugin; an exception other than a `CryobenchError` or Ctrl-C becomes a `PluginError`.

    A child process that the plugin forked and that returns from the call ends here, see `end_forked`.
    """
    process = os.getpid()
    try:
        return call()
    except (CryobenchError, KeyboardInterrupt):
        raise
    except BaseException as error:  # a plugin may raise anything, and must not end the program
        raise PluginError(f"{what}: {described(error)}") from error
    finally:
        end_forked(process)


def end_forked(process: int) -> None:
    """End this process at once unless its id is `process`: a plugin forked, and the program must not run twice."""
    if os.getpid() != process:
        os._exit(1)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of an error message: the closest known name, then all known names."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    exist = f"there are {', '.join(known)}" if known else "there are none"
    return f"did you mean {close[0]!r}? {exist}" if close else exist


def owner(point: EntryPoint) -> str:
    """The distribution of an entry point."""
    return _owner(_origin("", point))


def _origin(kind: str, point: EntryPoint) -> Origin:
    name, version = ("an unknown distribution", "") if point.dist is None else _identity(point.dist)
    return Origin(kind, point.name, point.value, name, version)


def _owner(origin: Origin) -> str:
    return f"{origin.distribution} {origin.version}".strip()


def _known_kind(kind: str) -> str:
    if kind not in KINDS:
        raise UnknownName(f"no kind {kind!r}; {did_you_mean(kind, KINDS)}")
    return kind


def _singular(kind: str) -> str:
    return {"noises": "noise model", "masks": "mask generator", "objectives": "training objective"}.get(
        kind, kind.removesuffix("s")
    )


def _what(component: Any) -> str:
    return f"the class {component.__name__}" if isinstance(component, type) else f"a {type(component).__name__}"
