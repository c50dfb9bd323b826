"""What solvers are tuned on: problems of the command line or of a suite, never an image that the suite tests on."""

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
from cryobench.plan.suite import lacking
from cryobench.plan.suite_file import Grid, Placed, Rule, SuiteFile
from cryobench.registry import Registry
from cryobench.spec import Field, Spec, fields_of, parse


@dataclass(frozen=True)
class Task:
    """A solver to tune, and on what. solver: its spec; the parameters that it states stay as they are. requests: what
    is run with it, but for the solver. excluded: rules of a suite that leave out cells."""

    solver: str
    requests: tuple[Request, ...]
    excluded: tuple[Rule, ...] = ()

    @property
    def name(self) -> str:
        """Under which a preset holds its setting."""
        return parse(self.solver).name


def searched(solver: str, registry: Registry) -> list[Field]:
    """The fields of a solver to search: those with a range that its spec does not state.

    Raises a `CryobenchError` for a spec that makes no sense, or names a preset.
    """
    spec = parse(solver)
    if spec.after is not None:
        raise ParameterError(f"{solver!r} has the parameters of a preset; tune {dataclasses.replace(spec, after=None)}")
    check_kind("solvers", solver, registry.make("solvers", spec))
    cls = registry.get("solvers", spec.name)
    stated = stated_by(spec, cls)
    return [field for field in fields_of(cls) if field.search is not None and field.name not in stated]


def from_request(request: Request, registry: Registry) -> list[Task]:
    """A task for each solver of a request, on all of its problems."""
    for solver in request.solvers:
        if not searched(solver, registry):
            raise ParameterError(f"{solver!r} has nothing to tune: no parameter with a range that is not stated "
                                 f"(`cryobench show {parse(solver).name}` tells them)")  # fmt: skip
    return _each_once([Task(solver, (_problems(request),)) for solver in dict.fromkeys(request.solvers)])


def from_suite(suite: SuiteFile, request: Request, registry: Registry) -> tuple[list[Task], list[str]]:
    """The solvers of a suite that have ranges, each on the problems that the suite has for it; what is left out, in
    words.

    `request` says the images, the metrics and how to run; its data and its solvers, where it has any, stand in place of
    the suite's. Raises `SelectionError` where the suite tests on one of the images. No test image is read for that:
    images of one source are the same where their numbers are. What is the same and comes from elsewhere is found by
    its digest when the setting is used (`presets.check_unseen`).
    """
    if request.solvers:
        from_request(request, registry)  # stated ones are checked as they are without a suite
    tasks: dict[str, list[Request]] = {}
    left: dict[str, None] = {}
    for part in suite.grids:
        missing = lacking(part)
        if missing:
            left[f"{', '.join(_texts(part.solvers))}: {missing} absent"] = None
            continue
        asked = _of_grid(part, request)
        try:
            _check_apart(suite, asked, registry)
            for solver in request.solvers or _texts(part.solvers):
                if parse(solver).after is None and searched(solver, registry):
                    tasks.setdefault(solver, []).append(_problems(asked))
                else:
                    left[f"{solver}: nothing of it is to be tuned"] = None
        except DataError as error:
            if not part.optional:
                raise _at(suite, part, error) from error
            left[f"{', '.join(_texts(part.solvers))}: {part.optional} ({error})"] = None
        except SelectionError:
            raise
        except CryobenchError as error:
            raise _at(suite, part, error) from error
    if not tasks:
        raise SuiteError(f"{suite.path}: there is no solver to tune; {'; '.join(left)}")
    return _each_once([Task(solver, tuple(parts), suite.excluded) for solver, parts in tasks.items()]), list(left)


def _each_once(tasks: list[Task]) -> list[Task]:
    """Raise `ParameterError` for two specs of one solver: a preset has one setting for each."""
    for name, count in Counter(task.name for task in tasks).items():
        if count > 1:
            specs = " and ".join(task.solver for task in tasks if task.name == name)
            raise ParameterError(f"a preset has one setting for {name}, got {specs}; name one of them with --solver")
    return tasks


def _problems(request: Request) -> Request:
    """A request without its solvers and references."""
    return dataclasses.replace(request, solvers=(), floor=False, ceiling=False)


def _of_grid(part: Grid, given: Request) -> Request:
    """The problems of a suite's grid, with the images, metrics and data that are given."""
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


def _check_apart(suite: SuiteFile, asked: Request, registry: Registry) -> None:
    """Raise `SelectionError` where a grid of the suite tests on an image that would be tuned on."""
    for text in asked.data:
        spec = source_spec(text, asked.data_options, registry)
        stack = open_stack(text, asked.data_options, registry)
        chosen = parse_images(asked.images, len(stack), label=stack.label)
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
    except DataError:  # not on this machine: nothing that is here comes from it
        return None


def _origin(spec: Spec, registry: Registry) -> str:
    """Where a source's images come from: for a file where it lies, whatever leads there."""
    if spec.name == "file":
        return str(Path(registry.make("sources", spec).path).expanduser().resolve())
    return source_identity(spec, registry)


def _texts(specs: Sequence[Placed]) -> tuple[str, ...]:
    return tuple(spec.text for spec in specs)


def _at(suite: SuiteFile, part: Grid, error: CryobenchError) -> SuiteError:
    return SuiteError(f"{suite.path}, line {part.line}: {error}")
