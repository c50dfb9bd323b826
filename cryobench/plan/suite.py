"""The plans of a suite."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from cryobench import environment
from cryobench.errors import CryobenchError, DataError, SuiteError
from cryobench.plan import grid
from cryobench.plan.grid import Cell, Plan, Request
from cryobench.plan.presets import choose, presets_folder
from cryobench.plan.suite_file import Grid, LocatedSpec, Reference, Rule, SuiteFile
from cryobench.registry import Registry


@dataclass(frozen=True)
class UnavailableGrid:
    """A grid that is not run because its data, weights or a plugin are not available here, as the suite permits.

    reason: as written in the suite, or the missing plugin. error: the error on this machine.
    """

    solvers: tuple[str, ...]
    operators: tuple[str, ...]
    reason: str
    error: str


def references(suite: SuiteFile, registry: Registry, presets: str | None = None) -> list[Reference]:
    """The published numbers, with specs as shown in records. Raises `SuiteError` for unknown specs."""
    found = []
    for reference in suite.references:
        specs = {"solver": reference.solver, "operator": reference.operator, "noise": reference.noise}
        shown = {
            name: _shown(suite, registry, name + "s", LocatedSpec(text, reference.line), presets)
            for name, text in specs.items()
        }
        found.append(dataclasses.replace(reference, **shown))
    return found


def plans(suite: SuiteFile, registry: Registry, *, device: str = "cpu", batch: int | str = grid.AUTO,
          save: Sequence[str] = (), presets: str | None = None
          ) -> tuple[list[Plan], list[UnavailableGrid]]:  # fmt: skip
    """A checked plan for each grid of the suite, without excluded cells, and the grids that cannot run. A cell of
    several grids is in the plan of the first.

    Raises `SuiteError`, which names the line, for unknown or invalid specs and values.
    """
    found: list[Plan] = []
    unavailable: list[UnavailableGrid] = []
    loaded: grid.Loaded = {}
    seen: set[str] = set()
    for part in suite.grids:
        missing = missing_distributions(part)
        show = _shown_or_written if missing else _shown
        shown = {kind: tuple(show(suite, registry, kind, spec, presets) for spec in getattr(part, kind))
                 for kind in ("solvers", "operators", "noises", "metrics")}  # fmt: skip
        if missing:
            reasons = f"{missing} not installed", f"install {missing} to run them"
            unavailable.append(UnavailableGrid(shown["solvers"], shown["operators"], *reasons))
            continue
        try:
            plan = grid.plan(_request(part, device, batch, save, presets), registry, loaded)
        except DataError as error:
            if not part.optional:
                raise _at(suite, part.line, error) from error
            unavailable.append(UnavailableGrid(shown["solvers"], shown["operators"], part.optional, str(error)))
        except CryobenchError as error:
            raise _at(suite, part.line, error) from error
        else:
            cells = _kept(plan.cells, suite.excluded, listed=shown["solvers"])
            found.append(dataclasses.replace(plan, cells=[cell for cell in cells if cell.key not in seen]))
            seen |= {cell.key for cell in found[-1].cells}
    if found and not any(plan.cells for plan in found):
        raise SuiteError(f"{suite.path}: its exclude rules leave nothing to run")
    return found, unavailable


def missing_distributions(part: Grid) -> str:
    """The distributions that a grid needs and that are not installed, as 'a and b'; '' if all are installed."""
    return " and ".join(name for name in part.needs if environment.version(name) == environment.NOT_INSTALLED)


def _shown(suite: SuiteFile, registry: Registry, kind: str, spec: LocatedSpec, presets: str | None) -> str:
    """A spec as shown in records. The component is constructed, so that an error names the line."""
    try:
        if kind == "solvers":
            return choose(spec.text, registry, presets_folder(presets)).label
        return str(registry.spec_of(registry.make(kind, spec.text)))
    except CryobenchError as error:
        raise _at(suite, spec.line, error) from error


def _shown_or_written(suite: SuiteFile, registry: Registry, kind: str, spec: LocatedSpec, presets: str | None) -> str:
    """The same, or the spec as written if it is unknown here."""
    try:
        return _shown(suite, registry, kind, spec, presets)
    except SuiteError:
        return spec.text


def _request(part: Grid, device: str, batch: int | str, save: Sequence[str], presets: str | None) -> Request:
    return Request(
        solvers=_texts(part.solvers),
        operators=_texts(part.operators),
        noises=_texts(part.noises),
        data=_texts(part.data),
        data_options={} if part.size is None else {"size": part.size},
        metrics=_texts(part.metrics) or grid.DEFAULT_METRICS,
        images=part.images,
        scaling=part.scaling,
        halves=part.halves,
        protocol=part.protocol,
        seeds=part.seeds,
        within=part.within,
        ceiling=part.ceiling,
        device=device,
        batch=batch,
        save=tuple(save),
        presets=presets,
    )


def _texts(specs: Sequence[LocatedSpec]) -> tuple[str, ...]:
    return tuple(spec.text for spec in specs)


def _kept(cells: Sequence[Cell], rules: Sequence[Rule], *, listed: Sequence[str]) -> Iterator[Cell]:
    """The cells that no rule excludes, with floor and ceiling for every problem that has another cell.

    listed: the solvers that the suite lists, which may include a floor.
    """
    included = [not is_excluded(cell, rules) for cell in cells]
    problems = {_problem(cell) for cell, kept in zip(cells, included, strict=True)
                if kept and not cell.ceiling and (not cell.floor or cell.labels["solver"] in listed)}  # fmt: skip
    for cell, kept in zip(cells, included, strict=True):
        if _problem(cell) in problems and (kept or cell.floor or cell.ceiling):
            yield cell


def _problem(cell: Cell) -> tuple[str, str, str, int]:
    return cell.labels["operator"], cell.labels["noise"], cell.dataset.key, cell.seed


def is_excluded(cell: Cell, rules: Sequence[Rule]) -> bool:
    """Whether a cell matches all patterns of one of the rules."""
    return any(
        all(fnmatchcase(cell.labels[name], pattern) for name, pattern in dataclasses.asdict(rule).items())
        for rule in rules
    )


def _at(suite: SuiteFile, line: int, error: CryobenchError) -> SuiteError:
    return SuiteError(f"{suite.path}, line {line}: {error}")
