"""Problems of installed plugins, each with its distribution. A broken plugin does not affect the others."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, EntryPoint, PackageNotFoundError
from importlib.metadata import version as version_of

from packaging.requirements import InvalidRequirement, Requirement

from cryobench.contract import CONTRACT, GROUP, mismatch
from cryobench.core.kinds import BASE_CLASSES, older_method
from cryobench.errors import CryobenchError
from cryobench.hooks import GROUP as HOOKS
from cryobench.registry import COMMANDS, KINDS, PREFIX, Registry, did_you_mean, entry_points, guarded, owner

PACKAGE = "cryobench"


def problems(registry: Registry, points: Iterable[EntryPoint] | None = None) -> list[str]:
    """One line for each problem. Imports every plugin. points: the entry points of the registry, by default all."""
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
                found += [f"{where} {what}" for what in _violations(kind, cls)]
    for point in points:
        found += _other_group(point)
    distributions = {point.dist.name: point.dist for point in points if point.dist is not None}
    for name, distribution in sorted(distributions.items()):
        found += [f"{name} {distribution.version} {what}" for what in _unmet(distribution)]
    return list(dict.fromkeys(found))  # a distribution of another contract is one problem, not one per component


def _violations(kind: str, cls: type) -> Iterator[str]:
    """How a component's class violates the contract of its kind."""
    bases = BASE_CLASSES[kind]
    base = next((base for base in bases if issubclass(cls, base)), None)
    if base is None:
        names = " or a ".join(f"cryobench.core.{base.__name__}" for base in bases)
        yield f"is a {cls.__name__}, expected a {names}"
        return
    method = older_method(kind, cls)
    if method is not None:
        yield f"{mismatch('1')} (see its method {method})"
        return
    missing = sorted(getattr(cls, "__abstractmethods__", ()))
    if missing:
        yield f"lacks {', '.join(missing)}, which contract {CONTRACT} requires; install a newer release"
    for name, expected in inspect.getmembers(base, inspect.isfunction):
        given = getattr(cls, name, None)
        if given is expected or name.startswith("_") or not inspect.isfunction(given) or _accepts(given, expected):
            continue
        yield (
            f"has {name}{inspect.signature(given)}, contract {CONTRACT} has {name}{inspect.signature(expected)}; "
            "install a newer release, or see docs/plugins.md"
        )


def _accepts(given: object, expected: object) -> bool:
    """Whether `given` can be called with the arguments of `expected`."""
    parameters = inspect.signature(expected).parameters.values()  # pyright: ignore[reportArgumentType]
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    named = {p.name: None for p in parameters if p.kind is p.KEYWORD_ONLY}
    try:
        inspect.signature(given).bind(*[None] * len(positional), **named)  # pyright: ignore[reportArgumentType]
    except TypeError:
        return False
    return True


def _other_group(point: EntryPoint) -> Iterator[str]:
    """Problems of an entry point that is not a component: a contract, a hook, a command, or of an unknown group."""
    group, where = point.group.removeprefix(PREFIX), f"{point.name!r} of {owner(point)}"
    if point.group == GROUP:
        if (reason := mismatch(point.name)) is not None:
            yield f"{owner(point)} {reason}"
    elif point.group in (HOOKS, COMMANDS):
        try:
            guarded(f"the {group.removesuffix('s')} {where} cannot be imported", point.load)
        except CryobenchError as error:
            yield str(error)
    elif group not in KINDS:
        yield f"{where} is registered under {point.group!r}, which is not a known group; {did_you_mean(group, KINDS)}"


def _unmet(distribution: Distribution) -> Iterator[str]:
    """Requirements of a distribution that are not met."""
    if distribution.name == PACKAGE:  # extras are optional
        return
    for text in distribution.requires or ():
        try:
            expected = Requirement(text)
        except InvalidRequirement:
            yield f"has an invalid requirement, {text!r}"
            continue
        if expected.marker is not None and not expected.marker.evaluate({"extra": ""}):
            continue
        try:
            there = version_of(expected.name)
        except PackageNotFoundError:
            yield f"requires {expected.name}, which is not installed: pip install '{expected.name}{expected.specifier}'"
            continue
        if not expected.specifier.contains(there, prereleases=True):
            if expected.name == PACKAGE:
                yield f"requires cryobench {expected.specifier}, but this is {there}; upgrade one of them"
            else:
                yield f"requires {expected.name} {expected.specifier}, but {there} is installed"
