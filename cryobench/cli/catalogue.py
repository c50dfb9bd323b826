"""`cryobench list`, `show` and `env`: the registered components, their parameters, versions and hardware."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cryobench.cli.output import note, rich_text, say
from cryobench.errors import UnknownName
from cryobench.registry import KINDS, did_you_mean, installed
from cryobench.spec import fields_of, first_field
from cryobench.text import json_text, printable

if TYPE_CHECKING:
    from cryobench.environment import Missing


def list_components(
    kind: Annotated[str | None, typer.Argument(help=f"One of {', '.join(KINDS)}.")] = None,
    problems: Annotated[bool, typer.Option("--problems", help="Import every plugin and report its errors.")] = False,
) -> None:
    """List the registered components by kind. Imports none of them."""
    registry = installed()
    if problems:
        from cryobench.testing.doctor import problems as problems_of

        found = problems_of(registry)
        for problem in found:
            say(problem)
        note(f"{len(found)} problem(s)")
        raise typer.Exit(1 if found else 0)
    if kind is not None and kind not in KINDS:
        raise UnknownName(f"no kind {kind!r}; {did_you_mean(kind, KINDS)}")
    rows = [("kind", "name", "from")]
    for shown in KINDS if kind is None else (kind,):
        for position, name in enumerate(registry.names(shown)):
            origins = registry.origins(shown, name)
            owners = " and ".join(f"{origin.distribution} {origin.version}" for origin in origins)
            clash = " (conflict: uninstall one)" if len(origins) > 1 else ""
            rows.append(("" if position else shown, name, owners + clash))
    kind_width, name_width = (max(len(row[column]) for row in rows) for column in (0, 1))
    for position, (shown, name, owners) in enumerate(rows):  # rich takes a quarter of a second for 250 rows
        line = printable(f"{shown:<{kind_width}}  {name:<{name_width}}  {owners}")
        typer.echo(line if position else typer.style(line, dim=True))


def show(name: Annotated[str, typer.Argument(help="A component name, such as sumpool.")]) -> None:
    """Show a component: its description, its parameters, and the package that provides it."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    registry = installed()
    kinds = [kind for kind in KINDS if name in registry.names(kind)]
    if not kinds:
        every = sorted({known for kind in KINDS for known in registry.names(kind)})
        raise UnknownName(f"nothing is registered as {name!r}; {did_you_mean(name, every)}")
    console = Console()
    for kind in kinds:
        component = registry.get(kind, name)
        origin = registry.origins(kind, name)[0]
        provided = rich_text(f"{kind} · {origin.distribution} {origin.version} · {origin.target}", "dim")
        console.print(Text("  ").join([rich_text(name, "bold"), provided]))
        console.print(rich_text(_paragraphs(component.__doc__ or "(no description)")))
        fields = fields_of(component)
        table = Table(box=None, pad_edge=False, header_style="dim")
        searched = any(field.search is not None for field in fields)
        for heading in ("parameter", "type", "default", *(["tuned over"] if searched else []), "meaning"):
            table.add_column(heading)
        for field in fields:
            default = "required" if field.required else _default_text(field.default)
            search = [str(field.search or "")] if searched else []
            table.add_row(*map(rich_text, (field.name, field.type_name, default, *search, field.doc)))
        if fields:
            console.print(table)
        if (first := first_field(component)) is not None:
            console.print(rich_text(f"{name}:VALUE sets {first.name}."))
        console.print()


def env(as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False) -> None:
    """Print versions and hardware, for bug reports, and what is missing for what."""
    from cryobench import environment
    from cryobench.errors import CryobenchError
    from cryobench.testing.doctor import problems as problems_of

    missing = [*environment.missing_extras(), *environment.missing_cuda(), *_missing_weights()]
    facts: dict[str, str | int] = dict(environment.versions())
    try:
        environment.import_diffusers()
    except CryobenchError as error:
        facts["diffusers"] = str(error)
    for package in sorted({package for packages, _ in environment.EXTRAS.values() for package in packages}):
        if (version := environment.version(package)) != environment.NOT_INSTALLED:
            facts[package] = version
    facts |= environment.hardware()
    problems = problems_of(installed())
    facts["plugin problems"] = "; ".join(problems) or "none"
    if as_json:
        say(json_text({**facts, "missing": [entry._asdict() for entry in missing]}, indent=1))
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        say(f"{name:<{width}}  {value}")
    say("\nmissing" + ("" if missing else ": nothing"))
    for entry in missing:
        say(f"  {entry.what}, for {entry.needed_for}: {entry.remedy}")


def _missing_weights() -> list[Missing]:
    """The weights of the metric lpips, if they are not on this machine."""
    from cryobench.environment import Missing
    from cryobench.errors import DependencyError
    from cryobench.metrics.perceptual import alexnet_weights

    try:
        alexnet_weights()
    except DependencyError as error:
        return [Missing("weights", "the metric lpips", str(error))]
    return []


def _default_text(value: object) -> str:
    if value is None:
        return "none"
    try:
        return str(installed().spec_of(value)) if hasattr(value, "__dataclass_fields__") else str(value).lower()
    except UnknownName:
        return str(value)


def _paragraphs(doc: str) -> str:
    """A docstring without its source line breaks, so that it wraps to the terminal; indented formulas are kept."""
    import inspect

    def shown(part: str) -> str:
        formulas = all(line.startswith("    ") for line in part.splitlines())
        return part.rstrip() if formulas else " ".join(part.split())

    return "\n\n".join(map(shown, inspect.cleandoc(doc).split("\n\n")))
