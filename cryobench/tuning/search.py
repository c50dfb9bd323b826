"""The search for the best setting of a solver: the default first, then what the strategy suggests, to the budget."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryobench.errors import CryobenchError, ParameterError, said
from cryobench.plan.grid import Cell, Loaded
from cryobench.plan.presets import (
    Setting,
    Validation,
    add_setting,
    parameters_of,
    source_identity,
    stated_by,
)
from cryobench.registry import Registry, guarded
from cryobench.spec import Field, parse
from cryobench.tuning import space
from cryobench.tuning.journal import Journal, open_journal
from cryobench.tuning.objective import Measure, Objective, Unscored, falls_behind
from cryobench.tuning.problems import Task, searched
from cryobench.tuning.trial import Trial, Values

TRIALS = 20


@dataclass(frozen=True)
class Budget:
    """What each solver may spend: trials, or network evaluations (images times NFE)."""

    trials: int | None = TRIALS
    evaluations: int | None = None

    def __post_init__(self) -> None:
        if (self.trials is None) == (self.evaluations is None):
            raise ParameterError("a budget is a number of --trials or of --evaluations, one of both")
        if (self.trials or self.evaluations or 0) < 1:
            raise ParameterError(f"a budget must be at least 1, got {self}")

    def __str__(self) -> str:
        return f"{self.trials} trials" if self.evaluations is None else f"{self.evaluations} evaluations"

    @property
    def unit(self) -> str:
        return "trials" if self.evaluations is None else "evaluations"

    def allows_another(self, done: Sequence[Trial]) -> bool:
        """Whether another trial fits in. It is expected to cost what the default did, and one that failed is charged
        that much at least."""
        if self.evaluations is None:
            return len(done) < (self.trials or 0)
        one = done[0].evaluations
        return one + sum(max(trial.evaluations, one if trial.failed else 0) for trial in done) <= self.evaluations


@dataclass(frozen=True)
class Search:
    """How to search, and where to keep what is found: the preset `preset` in `folder`.

    points: of the grid, per field. seed: of the search; the problems have their own. force: drop trials of another
    question.
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


@dataclass(frozen=True)
class Outcome:
    """What a search has come to. default, best: scores; None where the default has none, and `reason` says why.

    setting: the best, text by parameter. left_out: problems that the solver does not take, and why. reused: trials that
    the journal held. seconds: of all trials. interrupted: by the user.
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


class Observer:
    """What a caller may want to be told. Every method may be left as it is."""

    def trial_finished(self, solver: str, done: Sequence[Trial]) -> None:
        """The last of these trials is saved."""


class Tuning:
    """A solver to tune: checked when it is made, searched by `run`. `loaded`: images that need not be read again.

    Raises a `CryobenchError` for a request that makes no sense.
    """

    def __init__(self, task: Task, search: Search, registry: Registry, loaded: Loaded | None = None):
        self.task, self.search, self.registry = task, search, registry
        self.objective = Objective(task, search.measure, registry, {} if loaded is None else loaded)
        self.base = registry.make("solvers", task.solver)
        self.fields: list[Field] = searched(task.solver, registry)
        self.cells: list[Cell] = [cell for plan in self.objective.plans(task.solver) for cell in plan.cells]

    def journal(self) -> AbstractContextManager[Journal]:
        """The journal of this solver. Raises a `CryobenchError` where it cannot be had, or was of another question."""
        search = self.search
        return open_journal(search.preset, search.folder, self.task.name, self.question(), self.fields,
                            higher=search.measure.higher, force=search.force)  # fmt: skip

    def run(self, observer: Observer | None = None) -> Outcome:
        """Search the ranges and put the best setting into the preset.

        The default setting comes first, is never pruned and counts as a trial, so the best is at least as good.
        Finished trials are in the journal, and a search that was stopped goes on as it would have. Ctrl-C ends it with
        the best so far. A default that has no score ends it with the reason.
        """
        with self.journal() as journal:
            reused, reason, interrupted = len(journal.trials), "", False
            try:
                self._fill(journal, observer or Observer())
            except Unscored as error:
                reason = str(error)
            except KeyboardInterrupt:
                interrupted = True
            outcome = self._outcome(journal.trials)
            if outcome.best is not None and not reason:
                self._save(outcome, journal.trials[0])
        return dataclasses.replace(outcome, reused=reused, reason=reason, interrupted=interrupted)

    def question(self) -> dict[str, Any]:
        """All that the trials depend on but the size of the budget; a key is a word for what it holds."""
        search = self.search
        return {
            "solver": self.task.solver,
            "ranges": self._ranges(),
            "metric": search.measure.by,
            "strategy": search.strategy if search.strategy != "grid" else f"grid of {search.points}",
            "search seed": search.seed,
            "pruning": search.prune,
            "kind of budget": search.budget.unit,
            "problems": [[cell.labels[name] for name in ("operator", "noise", "data")] + [cell.seed, cell.within]
                         for cell in self.cells],
            "validation images": [cell.dataset.digest for cell in self.cells],
            "set of weights or versions": [cell.hash for cell in self.cells],
        }  # fmt: skip

    def _fill(self, journal: Journal, observer: Observer) -> None:
        """Run trials until the budget is spent, or all settings are."""
        search, done = self.search, journal.trials
        if not done:
            default = self._trial({field.name: getattr(self.base, field.name) for field in self.fields}, None, done)
            if default.failed:
                raise Unscored(default.reason)  # not kept: what hindered it may be put right
            journal.add(default)
            observer.trial_finished(self.task.solver, done)
        if search.budget.evaluations is not None and done[0].evaluations == 0:
            raise Unscored(f"{self.task.solver} makes no network evaluations; give a budget of --trials")
        while search.budget.allows_another(done):
            values = space.suggest(
                self.fields, done, search.strategy, search.seed, search.points, search.measure.higher
            )
            if values is None:
                return
            journal.add(self._trial(values, done[0], done))
            observer.trial_finished(self.task.solver, done)

    def _trial(self, values: Values, default: Trial | None, done: Sequence[Trial]) -> Trial:
        """Score a setting, problem by problem. Those that the default skips are left out of all trials."""
        start = time.perf_counter()
        without = set() if default is None else {int(number) for number in default.left_out}
        finished = [trial.scores for trial in done if trial.score is not None]
        scores: list[float] = []
        skipped: dict[str, str] = {}
        evaluations, pruned, reason = 0.0, False, ""
        try:
            for number, scored in enumerate(self.objective.scores(self._spec(values), without)):
                if scored.score is None:
                    skipped[str(number)] = scored.reason
                    continue
                scores.append(scored.score)
                evaluations += scored.evaluations
                last = len(scores) == len(self.cells) - len(without)
                if self.search.prune and not last and falls_behind(scores, finished, self.search.measure):
                    pruned = True
                    break
            if not scores or (skipped and default is not None):
                raise Unscored("; ".join(skipped.values()))
        except (Unscored, CryobenchError) as error:
            reason = said(error)
        seconds = time.perf_counter() - start
        return Trial(values, scores, {} if default else skipped, evaluations, seconds, pruned, reason)

    def _spec(self, values: Values) -> str:
        """The solver with a setting, as a spec."""
        what = f"{self.task.solver} cannot be made with {Trial(values).setting}"
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
        )

    def _ranges(self) -> dict[str, str]:
        return {field.name: str(field.search) for field in self.fields}

    def _save(self, outcome: Outcome, default: Trial) -> None:
        """Put the best setting into the preset: what was searched and what the spec states."""
        search = self.search
        cells = [cell for number, cell in enumerate(self.cells) if str(number) not in default.left_out]
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
            "ranges": self._ranges(),
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
        datasets = {cell.dataset.digest: cell.dataset for cell in self.cells}.values()
        return tuple(
            Validation(source_identity(data.spec, self.registry), data.label, data.ids, data.image_digests)
            for data in datasets
        )
