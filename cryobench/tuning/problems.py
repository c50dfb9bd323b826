"""Tuning tasks: solvers and the problems of the command line or a suite, never with test images of the suite."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryobench.core.kinds import check_kind
from cryobench.errors import CryobenchError, DataError, ParameterError, SelectionError, SuiteError
from cryobench.io.selection import parse_images
from cryobench.plan.dataset import open_stack, source_spec
from cryobench.plan.grid import Request
from cryobench.plan.presets import source_identity, stated_by
from cryobench.plan.suite import missing_distributions
from cryobench.plan.suite_file import Grid, LocatedSpec, Rule, SuiteFile
from cryobench.registry import Registry
from cryobench.spec import Field, Spec, fields_of, parse


@dataclass(frozen=True)
class TuningTask:
    """A solver and the problems to tune it on. solver: its spec; stated parameters are fixed. requests: the problems,
    as requests without solvers. excluded: exclude rules of a suite."""

    solver: str
    requests: tuple[Request, ...]
    excluded: tuple[Rule, ...] = ()

    @property
    def name(self) -> str:
        """The name of the solver in a preset."""
        return parse(self.solver).name


def searched_fields(solver: str, registry: Registry) -> list[Field]:
    """The fields of a solver to search: those with a range whose value the spec does not state.

    Raises a `CryobenchError` for an invalid spec or one with a preset.
    """
    spec = parse(solver)
    if spec.after is not None:
        raise ParameterError(f"{solver!r} has the parameters of a preset; tune {dataclasses.replace(spec, after=None)}")
    check_kind("solvers", solver, registry.make("solvers", spec))
    cls = registry.get("solvers", spec.name)
    stated = stated_by(spec, cls)
    return [field for field in fields_of(cls) if field.search is not None and field.name not in stated]


def from_request(request: Request, registry: Registry) -> list[TuningTask]:
    """A task for each solver of a request, on all of its problems."""
    for solver in request.solvers:
        if not searched_fields(solver, registry):
            raise ParameterError(f"{solver!r} has nothing to tune: no parameter with a range that is not stated "
                                 f"(`cryobench show {parse(solver).name}` lists ranges)")  # fmt: skip
    return _check_unique([TuningTask(solver, (_problems(request),)) for solver in dict.fromkeys(request.solvers)])


def from_suite(suite: SuiteFile, request: Request, registry: Registry) -> tuple[list[TuningTask], list[str]]:
    """A task for each solver of a suite that has ranges, on its problems in the suite; and messages on other solvers.

    `request` gives the images, the metrics and the options of the run. Its data and solvers, if any, replace those of
    the suite. Raises `SelectionError` if the suite tests on one of the images. Images of one source are compared by
    number, so no test image is read. Equal images of other sources are detected by digest when the setting is used
    (`presets.check_unseen`).
    """
    if request.solvers:
        from_request(request, registry)  # the same checks as without a suite
    tasks: dict[str, list[Request]] = {}
    left_out: dict[str, None] = {}
    for part in suite.grids:
        missing = missing_distributions(part)
        if missing:
            left_out[f"{', '.join(_texts(part.solvers))}: {missing} not installed"] = None
            continue
        problems = _of_grid(part, request)
        try:
            _check_no_test_images(suite, problems, registry)
            for solver in request.solvers or _texts(part.solvers):
                if parse(solver).after is None and searched_fields(solver, registry):
                    tasks.setdefault(solver, []).append(_problems(problems))
                else:
                    left_out[f"{solver}: nothing to tune"] = None
        except DataError as error:
            if not part.optional:
                raise _at(suite, part, error) from error
            left_out[f"{', '.join(_texts(part.solvers))}: {part.optional} ({error})"] = None
        except SelectionError:
            raise
        except CryobenchError as error:
            raise _at(suite, part, error) from error
    if not tasks:
        raise SuiteError(f"{suite.path}: no solver to tune; {'; '.join(left_out)}")
    found = [TuningTask(solver, tuple(parts), suite.excluded) for solver, parts in tasks.items()]
    return _check_unique(found), list(left_out)


def _check_unique(tasks: list[TuningTask]) -> list[TuningTask]:
    """Raise `ParameterError` for two specs of one solver: a preset has one setting per solver."""
    for name, count in Counter(task.name for task in tasks).items():
        if count > 1:
            specs = " and ".join(task.solver for task in tasks if task.name == name)
            raise ParameterError(f"a preset has one setting for {name}, got {specs}; choose one with --solver")
    return tasks


def _problems(request: Request) -> Request:
    """A request without its solvers and references."""
    return dataclasses.replace(request, solvers=(), floor=False, ceiling=False)


def _of_grid(part: Grid, given: Request) -> Request:
    """The problems of a suite's grid, with the given images, metrics and data."""
    return dataclasses.replace(
        given,
        operators=_texts(part.operators),
        noises=_texts(part.noises),
        data=given.data or _texts(part.data),
        data_options={} if part.size is None else {"size": part.size},
        scaling=part.scaling,
        seeds=part.seeds,
        within=part.within,
    )


def _check_no_test_images(suite: SuiteFile, request: Request, registry: Registry) -> None:
    """Raise `SelectionError` if a grid of the suite tests on one of the validation images."""
    for text in request.data:
        spec = source_spec(text, request.data_options, registry)
        stack = open_stack(text, request.data_options, registry)
        chosen = parse_images(request.images, len(stack), label=stack.label)
        for part in suite.grids:
            if _origin(spec, registry) not in [_origin_of(tested, registry) for tested in _texts(part.data)]:
                continue
            tested = set(parse_images(part.images, len(stack), label=stack.label))
            shared = [number for number in chosen if number in tested]
            if shared:
                raise SelectionError(
                    f"{suite.path}, line {part.line}, tests on image {shared[0]} of {stack.label}; tune on others: "
                    "give other --images or --data"
                )


def _origin_of(text: str, registry: Registry) -> str | None:
    try:
        return _origin(source_spec(text, {}, registry), registry)
    except DataError:  # not on this machine, so no validation image can come from it
        return None


def _origin(spec: Spec, registry: Registry) -> str:
    """Identifies a source: a file by its resolved path, others by their spec."""
    if spec.name == "file":
        return str(Path(registry.make("sources", spec).path).expanduser().resolve())
    return source_identity(spec, registry)


def _texts(specs: Sequence[LocatedSpec]) -> tuple[str, ...]:
    return tuple(spec.text for spec in specs)


def _at(suite: SuiteFile, part: Grid, error: CryobenchError) -> SuiteError:
    return SuiteError(f"{suite.path}, line {part.line}: {error}")
