"""What is wrong with the installed plugins, each with its distribution: none of it may break another plugin."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, EntryPoint, PackageNotFoundError
from importlib.metadata import version as version_of

from packaging.requirements import InvalidRequirement, Requirement

from cryobench.core.kinds import BASE_CLASSES
from cryobench.errors import CryobenchError
from cryobench.hooks import GROUP as HOOKS
from cryobench.registry import COMMANDS, KINDS, PREFIX, Registry, did_you_mean, entry_points, guarded, owner

PACKAGE = "cryobench"


def problems(registry: Registry, points: Iterable[EntryPoint] | None = None) -> list[str]:
    """A line for each problem. Imports every plugin. points: those that the registry was made of, or all there are."""
    points = list(entry_points() if points is None else points)
    found = []
    for kind in KINDS:
        for name in registry.names(kind):
            try:
                cls = registry.get(kind, name)
            except CryobenchError as error:
                found.append(str(error))
            else:
                origin = registry.origins(kind, name)[0]
                where = f"{kind}/{name} of {origin.distribution} {origin.version}"
                found += [f"{where} {what}" for what in _unfit(kind, cls)]
    for point in points:
        found += _elsewhere(point)
    distributions = {point.dist.name: point.dist for point in points if point.dist is not None}
    for name, distribution in sorted(distributions.items()):
        found += [f"{name} {distribution.version} {what}" for what in _unmet(distribution)]
    return found


def _unfit(kind: str, cls: type) -> Iterator[str]:
    """How a component's class is not what the contract of its kind asks for."""
    bases = BASE_CLASSES[kind]
    base = next((base for base in bases if issubclass(cls, base)), None)
    if base is None:
        yield f"is a {cls.__name__}, wanted a {' or a '.join(f'cryobench.core.{base.__name__}' for base in bases)}"
        return
    missing = sorted(getattr(cls, "__abstractmethods__", ()))
    if missing:
        yield f"lacks {', '.join(missing)}, which this version of the contract asks for: upgrade it"
    for name, wanted in inspect.getmembers(base, inspect.isfunction):
        given = getattr(cls, name, None)
        if given is not wanted and not name.startswith("_") and inspect.isfunction(given) and not _takes(given, wanted):
            yield (f"has {name}{inspect.signature(given)}, and is called as {name}{inspect.signature(wanted)}: it was "
                   "written for another version of the contract; upgrade it")  # fmt: skip


def _takes(given: object, wanted: object) -> bool:
    """Whether one function can be called as the other is."""
    parameters = inspect.signature(wanted).parameters.values()  # pyright: ignore[reportArgumentType]
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    named = {p.name: None for p in parameters if p.kind is p.KEYWORD_ONLY}
    try:
        inspect.signature(given).bind(*[None] * len(positional), **named)  # pyright: ignore[reportArgumentType]
    except TypeError:
        return False
    return True


def _elsewhere(point: EntryPoint) -> Iterator[str]:
    """What is wrong with an entry point that is no component: a hook, a command, or of a group that nobody reads."""
    group, where = point.group.removeprefix(PREFIX), f"{point.name!r} of {owner(point)}"
    if point.group in (HOOKS, COMMANDS):
        try:
            guarded(f"the {group.removesuffix('s')} {where} cannot be imported", point.load)
        except CryobenchError as error:
            yield str(error)
    elif group not in KINDS:
        yield f"{where} is registered under {point.group!r}, which is no group; {did_you_mean(group, KINDS)}"


def _unmet(distribution: Distribution) -> Iterator[str]:
    """What a distribution needs and does not have."""
    if distribution.name == PACKAGE:  # its extras are for those who want them
        return
    for text in distribution.requires or ():
        try:
            wanted = Requirement(text)
        except InvalidRequirement:
            yield f"has a requirement that cannot be read, {text!r}"
            continue
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            there = version_of(wanted.name)
        except PackageNotFoundError:
            yield f"needs {wanted.name}, which is not installed: pip install '{wanted.name}{wanted.specifier}'"
            continue
        if not wanted.specifier.contains(there, prereleases=True):
            if wanted.name == PACKAGE:
                yield f"was written for cryobench {wanted.specifier}, and this is {there}: upgrade one of them"
            else:
                yield f"needs {wanted.name} {wanted.specifier}, and {there} is installed"
