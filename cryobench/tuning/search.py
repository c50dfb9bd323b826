"""The search for the best setting of a solver: the default setting first, then suggestions until the budget is spent.

Cells are saved as they finish, in the results folder presets/NAME.trials. A search that is run again finds them there
and repeats the same suggestions, so a stopped search continues from the cell that was running.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from cryobench.errors import CryobenchError, ParameterError, ResultsError, reason_of
from cryobench.files import acquire_lock, check_writable_folder
from cryobench.plan.grid import Cell, Loaded
from cryobench.plan.presets import (
    Setting,
    Validation,
    add_setting,
    parameters_of,
    preset_file,
    source_identity,
    stated_by,
)
from cryobench.registry import Registry, guarded
from cryobench.results.store import Results
from cryobench.spec import Field, parse
from cryobench.tuning import space
from cryobench.tuning.objective import (
    Measure,
    NoScoreError,
    Objective,
    described,
    evaluations_of,
    seconds_of,
    worse_than_median,
)
from cryobench.tuning.problems import TuningTask, searched_fields
from cryobench.tuning.trial import Trial, Values

if TYPE_CHECKING:
    from filelock import AcquireReturnProxy

TRIALS = 20


@dataclass(frozen=True)
class Budget:
    """The budget of each solver: a number of trials, or of network evaluations (images times NFE)."""

    trials: int | None = TRIALS
    evaluations: int | None = None

    def __post_init__(self) -> None:
        if (self.trials is None) == (self.evaluations is None):
            raise ParameterError("a budget is a number of --trials or of --evaluations; give one of the two")
        if (self.trials or self.evaluations or 0) < 1:
            raise ParameterError(f"a budget must be at least 1, got {self}")

    def __str__(self) -> str:
        return f"{self.trials} trials" if self.evaluations is None else f"{self.evaluations} evaluations"

    def allows_another(self, done: Sequence[Trial]) -> bool:
        """Whether another trial fits. It is expected to cost as much as the default trial; a failed trial is charged at
        least that much."""
        if self.evaluations is None:
            return len(done) < (self.trials or 0)
        one = done[0].evaluations
        return one + sum(max(trial.evaluations, one if trial.failed else 0) for trial in done) <= self.evaluations


@dataclass(frozen=True)
class Search:
    """Settings of a search, and the preset in `folder` that receives the best setting.

    points: of the grid, per field. seed: of the search; problems have their own seeds. force: run saved cells again.
    """

    preset: str
    folder: Path
    measure: Measure
    budget: Budget = field(default_factory=Budget)
    strategy: str = "tpe"
    points: int = 5
    seed: int = 0
    prune: bool = True
    force: bool = False

    def __post_init__(self) -> None:
        if self.strategy not in space.STRATEGIES:
            known = ", ".join(space.STRATEGIES)
            raise ParameterError(f"--strategy must be one of {known}, got {self.strategy!r}")
        if self.points < 2:
            raise ParameterError(f"--grid-points must be at least 2, got {self.points}")

    @property
    def trials_folder(self) -> Path:
        """The results folder of the preset's trials."""
        return preset_file(self.preset, self.folder).with_suffix(".trials")


@dataclass(frozen=True)
class Outcome:
    """The result of a search. default, best: scores; None if the default setting has none, and `reason` says why.

    setting: the best one, text by parameter. left_out: problems that the solver does not support, with reasons.
    reused: trials whose cells were all saved before. seconds: of all trials. interrupted: by the user.
    """

    solver: str
    default: float | None = None
    best: float | None = None
    setting: dict[str, str] = field(default_factory=dict)
    trials: int = 0
    pruned: int = 0
    failed: int = 0
    evaluations: float = 0.0
    seconds: float = 0.0
    left_out: tuple[str, ...] = ()
    reused: int = 0
    reason: str = ""
    interrupted: bool = False


class Tuning:
    """The search for one solver, checked when it is constructed. loaded: images that were read before.

    Raises a `CryobenchError` for an invalid request.
    """

    def __init__(self, task: TuningTask, search: Search, registry: Registry, loaded: Loaded | None = None):
        self.task, self.search, self.registry = task, search, registry
        self.objective = Objective(task, search.measure, registry, Results(search.trials_folder), search.force,
                                   {} if loaded is None else loaded)  # fmt: skip
        self.base = registry.make("solvers", task.solver)
        self.fields: list[Field] = searched_fields(task.solver, registry)
        self.cells: list[Cell] = [cell for plan in self.objective.plans(task.solver) for cell in plan.cells]

    def lock(self) -> AcquireReturnProxy:
        """Lock the tuning of this solver for this preset, as a context manager.

        Raises `ResultsError` if another process holds the lock, or if trials cannot be saved.
        """
        folder, name = self.search.trials_folder, self.task.name
        check_writable_folder(folder, "trials", "--presets")
        busy = f"{name} is being tuned for the preset {self.search.preset} by another process; wait for it"
        return acquire_lock(folder / f".{name}.lock", busy=busy)

    def run(self, report: Callable[[Sequence[Trial]], None] = lambda done: None) -> Outcome:
        """Search the ranges and save the best setting to the preset. report: called with all trials after each one.

        The default setting is the first trial and is never pruned, so the best score is at least as good. Ctrl-C ends
        the search with the best setting so far. A default setting without a score ends it with the reason.
        """
        done: list[Trial] = []
        reason, interrupted = "", False
        with self.lock():
            try:
                for trial in self._trials():
                    done.append(trial)
                    report(done)
            except NoScoreError as error:
                reason = str(error)
            except KeyboardInterrupt:
                interrupted = True
            outcome = dataclasses.replace(self._outcome(done), reason=reason, interrupted=interrupted)
            if outcome.best is not None and not reason:
                self._save(outcome, done[0])
        return outcome

    def _trials(self) -> Iterator[Trial]:
        """Trials until the budget is spent or no setting is left."""
        search = self.search
        default = self._trial({field.name: getattr(self.base, field.name) for field in self.fields}, None, ())
        if default.failed:
            raise NoScoreError(default.reason)
        done = [default]
        yield default
        if search.budget.evaluations is not None and default.evaluations == 0:
            raise NoScoreError(f"{self.task.solver} makes no network evaluations; give a budget of --trials")
        while search.budget.allows_another(done):
            values = space.suggest(
                self.fields, done, search.strategy, search.seed, search.points, search.measure.higher
            )
            if values is None:
                return
            done.append(self._trial(values, default, done))
            yield done[-1]

    def _trial(self, values: Values, default: Trial | None, done: Sequence[Trial]) -> Trial:
        """Score a setting, problem by problem. Problems that the default setting skips are left out of all trials."""
        without = {} if default is None else default.left_out
        finished = [trial.scores for trial in done if trial.score is not None]
        scores: list[float] = []
        skipped: dict[int, str] = {}
        evaluations, seconds, pruned, reason = 0.0, 0.0, False, ""
        reused: list[bool] = []
        try:
            # a default that failed is tried again: its cause may have been removed
            for result in self.objective.results(self._spec(values), without, retry_failed=default is None):
                record = result.record
                reused.append(result.reused)
                seconds += seconds_of(record)
                if record.status == "skipped":
                    skipped[result.number] = described(record)
                    continue
                scores.append(self.objective.score(record))
                evaluations += evaluations_of(record)
                last = len(scores) == len(self.cells) - len(without)
                if self.search.prune and not last and worse_than_median(scores, finished, self.search.measure):
                    pruned = True
                    break
            if not scores or (skipped and default is not None):
                raise NoScoreError("; ".join(skipped.values()))
        except ResultsError:  # the trials folder is not writable, so later trials would fail too
            raise
        except (NoScoreError, CryobenchError) as error:
            reason = reason_of(error)
        return Trial(values, scores, {} if default else skipped, evaluations, seconds, pruned, reason,
                     reused=bool(reused) and all(reused))  # fmt: skip

    def _spec(self, values: Values) -> str:
        """The spec of the solver with these values."""
        what = f"{self.task.solver} cannot be constructed with {Trial(values).setting}"
        return str(self.registry.spec_of(guarded(what, lambda: dataclasses.replace(self.base, **values))))

    def _outcome(self, done: Sequence[Trial]) -> Outcome:
        if not done:
            return Outcome(self.task.solver)
        scores = {number: trial.score for number, trial in enumerate(done) if trial.score is not None}
        best = (max if self.search.measure.higher else min)(scores, key=lambda number: scores[number])
        return Outcome(
            self.task.solver,
            default=done[0].score,
            best=scores[best],
            setting=done[best].setting,
            trials=len(done),
            pruned=sum(trial.pruned for trial in done),
            failed=sum(trial.failed for trial in done),
            evaluations=sum(trial.evaluations for trial in done),
            seconds=sum(trial.seconds for trial in done),
            left_out=tuple(done[0].left_out.values()),
            reused=sum(trial.reused for trial in done),
        )

    def _save(self, outcome: Outcome, default: Trial) -> None:
        """Save the best setting to the preset: the parameters that were searched and those that the spec states."""
        search = self.search
        cells = [cell for number, cell in enumerate(self.cells) if number not in default.left_out]
        stated = parameters_of(self.registry, self.base, stated_by(parse(self.task.solver), type(self.base)))
        spent = ("solver", "default", "best", "trials", "pruned", "failed", "evaluations", "seconds")
        made = {
            "by": search.measure.by,
            "direction": "higher" if search.measure.higher else "lower",
            **{name: getattr(outcome, name) for name in spent},
            "budget": str(search.budget),
            "strategy": search.strategy,
            "search_seed": search.seed,
            "pruning": search.prune,
            "ranges": {field.name: str(field.search) for field in self.fields},
            "operators": list(dict.fromkeys(cell.labels["operator"] for cell in cells)),
            "noises": list(dict.fromkeys(cell.labels["noise"] for cell in cells)),
            "seeds": list(dict.fromkeys(cell.seed for cell in cells)),
            "within": list(dict.fromkeys(cell.within for cell in cells)),
            "dtype": self.task.requests[0].dtype,
            "versions": {name: version for cell in cells for name, version in cell.plugins.items()},
            "date": f"{datetime.now(UTC):%Y-%m-%d}",
        }
        setting = Setting(self.task.name, stated | outcome.setting, self._validation(), made)
        add_setting(setting, search.preset, search.folder)

    def _validation(self) -> tuple[Validation, ...]:
        datasets = {cell.dataset.key: cell.dataset for cell in self.cells}.values()
        return tuple(
            Validation(source_identity(data.spec, self.registry), data.label, data.ids, data.image_digests)
            for data in datasets
        )
