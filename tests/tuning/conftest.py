"""Fast searches: the solvers of `toys` on two images of 8 x 8 pixels."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import toys

from cryobench.plan.grid import Request
from cryobench.plan.presets import read_preset
from cryobench.registry import installed
from cryobench.tuning.objective import measure_of
from cryobench.tuning.problems import from_request
from cryobench.tuning.search import Budget, Outcome, Search, Tuning
from cryobench.tuning.trial import Trial


class Lab:
    """Tunes solvers of `toys` for the preset `p` of a folder. trials: those of the last search, as plain values."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.trials: list[dict] = []

    def search(self, **changed) -> Search:
        changed.setdefault("measure", measure_of("mse", ["mse"], installed()))
        changed.setdefault("budget", Budget(8))
        return Search("p", self.folder, **changed)

    def tuning(self, solver: str = "toy", operators=("identity",), **changed) -> Tuning:
        request = Request((solver,), operators, data=("spy",), images="4:6")
        (task,) = from_request(request, installed())
        return Tuning(task, self.search(**changed), installed())

    def tune(self, solver: str = "toy", stop_after: int | None = None, **changed) -> Outcome:
        """stop_after: interrupt the search after this many trials."""

        def report(done) -> None:
            self.trials = [plain(trial) for trial in done]
            if len(done) == stop_after:
                raise KeyboardInterrupt

        self.trials = []
        return self.tuning(solver, **changed).run(report)

    def setting(self, solver: str = "toy"):
        return read_preset(self.folder / "p.yaml")[solver]

    def beside(self, name: str) -> Lab:
        return Lab(self.folder / name)


def plain(trial: Trial) -> dict:
    """The values of a trial that do not depend on when and where it ran."""
    fixed = dataclasses.asdict(trial) | {"score": trial.score, "failed": trial.failed}
    return {name: value for name, value in fixed.items() if name not in ("seconds", "reused")}


@pytest.fixture
def lab(tmp_path, monkeypatch, install_plugin) -> Lab:
    monkeypatch.setenv("SPIED", str(tmp_path / "spied"))
    toys.install(install_plugin)
    return Lab(tmp_path / "presets")
