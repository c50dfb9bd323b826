"""`cryobench check`: whether components do what their kind's contract asks for."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated

import typer

from cryobench.errors import ParameterError, UnknownName
from cryobench.registry import KINDS, Registry, did_you_mean, installed
from cryobench.spec import parse

if TYPE_CHECKING:
    from cryobench.testing.rules import Verdict

MARKS = {"holds": "ok", "broken": "BROKEN", "does not apply": "n/a"}


def check(
    specs: Annotated[
        list[str],
        typer.Argument(help="Components: pinv, sumpool:4, or solvers/dct where a name is of several kinds."),
    ],
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only what is broken.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Hold components to the contract of their kind: what holds, what does not, and what to do. Exit code 1 where
    something does not.

    They are tried on small made images: give a slow solver few steps, as cryosense:steps=20.
    """
    import json

    from cryobench.testing import examine

    asked = [(kind, spec) for text in specs for kind, spec in _kinds_of(text, installed())]
    told, broken = [], 0
    for kind, spec in asked:
        if not as_json:
            typer.echo(f"{kind}/{spec}")
        verdicts = []
        for verdict in examine(kind, spec):
            verdicts.append(verdict)
            if not as_json and (verdict.status == "broken" or not quiet):
                _tell(verdict)
        counts = Counter(verdict.status for verdict in verdicts)
        broken += counts["broken"]
        if not as_json:
            typer.echo("  " + ", ".join(f"{n} {MARKS[status]}" for status, n in counts.items()) + "\n")
        told.append({"kind": kind, "spec": spec, "rules": [
            {"rule": v.rule.name, "status": v.status, "why": v.why, "remedy": v.rule.remedy} for v in verdicts
        ]})  # fmt: skip
    if as_json:
        typer.echo(json.dumps(told, indent=1))
    raise typer.Exit(1 if broken else 0)


def _kinds_of(text: str, registry: Registry) -> list[tuple[str, str]]:
    """The kinds that a component may be meant of, with its spec. Raises `UnknownName`."""
    kind, slash, spec = text.partition("/")
    if slash and kind in KINDS:
        if (name := parse(spec).name) not in registry.names(kind):
            registry.get(kind, name)  # raises, with what there is
        return [(kind, spec)]
    spec = parse(text)
    kinds = [kind for kind in KINDS if spec.name in registry.names(kind)]
    if not kinds:
        every = sorted({known for kind in KINDS for known in registry.names(kind)})
        raise UnknownName(f"nothing is registered as {spec.name!r}; {did_you_mean(spec.name, every)}")
    if len(kinds) > 1 and str(spec) != spec.name:
        raise ParameterError(f"{text!r} may be of {' or '.join(kinds)}; write {kinds[0]}/{text}")
    return [(kind, text) for kind in kinds]


def _tell(verdict: Verdict) -> None:
    why = f": {verdict.why}" if verdict.why else ""
    typer.echo(f"  {MARKS[verdict.status]:6}  {verdict.rule.name}{why}")
    if verdict.status == "broken":
        typer.echo(f"          {verdict.rule.remedy}")
