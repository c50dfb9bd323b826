"""`cryobench check`: test components against the contract of their kind."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated

import typer

from cryobench.cli.output import say
from cryobench.errors import ParameterError, UnknownName
from cryobench.registry import KINDS, Registry, did_you_mean, installed
from cryobench.spec import parse
from cryobench.text import json_text

if TYPE_CHECKING:
    from cryobench.testing.rules import RuleResult

MARKS = {"holds": "ok", "broken": "BROKEN", "does not apply": "n/a"}


def check(
    specs: Annotated[
        list[str],
        typer.Argument(help="Components: pinv, sumpool:4, or solvers/dct if a name is registered in several kinds."),
    ],
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print broken rules only.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Test components against the contract of their kind: which rules hold, which are broken, and how to fix them. The
    exit code is 1 if a rule is broken.

    The components are tested on small synthetic images or volumes. Give a slow solver few steps, such as
    cryosense:steps=20.
    """
    from cryobench.cli.output import stdout_for_results
    from cryobench.testing import examine

    requested = [(kind, spec) for text in specs for kind, spec in _kinds_of(text, installed())]
    report, broken = [], 0
    for kind, spec in requested:
        if not as_json:
            say(f"{kind}/{spec}")
        results = []
        examined = examine(kind, spec)
        while True:
            with stdout_for_results():
                result = next(examined, None)
            if result is None:
                break
            results.append(result)
            if not as_json and (result.status == "broken" or not quiet):
                _print(result)
        counts = Counter(result.status for result in results)
        broken += counts["broken"]
        if not as_json:
            say("  " + ", ".join(f"{n} {MARKS[status]}" for status, n in counts.items()) + "\n")
        report.append({"kind": kind, "spec": spec, "rules": [
            {"rule": r.rule.name, "status": r.status, "why": r.why, "remedy": r.rule.remedy} for r in results
        ]})  # fmt: skip
    if as_json:
        say(json_text(report, indent=1))
    raise typer.Exit(1 if broken else 0)


def _kinds_of(text: str, registry: Registry) -> list[tuple[str, str]]:
    """The kinds in which a component is registered, with its spec. Raises `UnknownName`."""
    kind, slash, spec = text.partition("/")
    if slash and kind in KINDS:
        if (name := parse(spec).name) not in registry.names(kind):
            registry.get(kind, name)  # raises, with the known names
        return [(kind, spec)]
    spec = parse(text)
    kinds = [kind for kind in KINDS if spec.name in registry.names(kind)]
    if not kinds:
        every = sorted({known for kind in KINDS for known in registry.names(kind)})
        raise UnknownName(f"nothing is registered as {spec.name!r}; {did_you_mean(spec.name, every)}")
    if len(kinds) > 1 and str(spec) != spec.name:
        raise ParameterError(f"{text!r} is ambiguous between {' and '.join(kinds)}; write {kinds[0]}/{text}")
    return [(kind, text) for kind in kinds]


def _print(result: RuleResult) -> None:
    why = f": {result.why}" if result.why else ""
    say(f"  {MARKS[result.status]:6}  {result.rule.name}{why}")
    if result.status == "broken":
        say(f"          {result.rule.remedy}")
