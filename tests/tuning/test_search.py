"""The search: default first, equal budgets, known optimum, and the same result after any interruption."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from cryobench.errors import ParameterError, ResultsError
from cryobench.plan.presets import parameters_of
from cryobench.registry import installed
from cryobench.results.store import Results, read_record
from cryobench.spec import as_text
from cryobench.tuning.objective import Measure, measure_of, worse_than_median
from cryobench.tuning.search import Budget

PROBLEMS = ("identity", "fourier:0.5", "sumpool:2,count=4")
EVALUATIONS_OF_A_TRIAL = 2  # two images


@pytest.mark.parametrize("strategy", ["tpe", "random", "grid"])
def test_the_known_optimum_is_found(lab, strategy):
    outcome = lab.tune(strategy=strategy, budget=Budget(40), points=11)
    assert outcome.setting["way"] == "good"
    assert abs(float(outcome.setting["x"]) - 0.3) < 0.11
    assert outcome.default == pytest.approx(((0 - 0.3) ** 2 + 1) / 4, rel=1e-4)
    assert outcome.best == pytest.approx((float(outcome.setting["x"]) - 0.3) ** 2 / 4, abs=1e-6)


def test_tpe_is_better_than_random_search(lab):
    budget = Budget(40)
    by_random = [lab.beside(f"r{seed}").tune("toy:way=good", strategy="random", seed=seed, budget=budget).best
                 for seed in range(3)]  # fmt: skip
    by_tpe = [lab.beside(f"t{seed}").tune("toy:way=good", seed=seed, budget=budget).best for seed in range(3)]
    assert sum(by_tpe) < sum(by_random)


def test_the_direction_is_that_of_the_column(lab):
    psnr = lab.tune(measure=measure_of("psnr", ["psnr", "mse"], installed()), operators=("sumpool:2,count=1",))
    assert psnr.best > psnr.default


@pytest.mark.parametrize("solver", ["toy", "other", "toy:x=0.3", "toy:0.3"])
def test_the_default_comes_first_and_the_best_is_at_least_as_good(lab, solver):
    outcome = lab.tune(solver)
    first, *_ = lab.trials
    made = installed().make("solvers", solver)
    assert first["values"] == {name: getattr(made, name) for name in first["values"]}
    assert first["score"] == outcome.default
    assert outcome.best <= outcome.default


def test_stated_parameters_are_not_searched_and_are_kept(lab):
    lab.tune("toy:x=0.25,cost=2")
    assert all(set(trial["values"]) == {"way"} for trial in lab.trials)
    assert dict(lab.setting().parameters) == {"x": "0.25", "way": "good", "cost": "2"}


def test_every_solver_has_the_same_number_of_trials(lab):
    for solver in ("toy", "other"):
        outcome = lab.tune(solver, operators=PROBLEMS, budget=Budget(11))
        assert outcome.trials == len(lab.trials) == 11


def test_every_solver_has_the_same_number_of_evaluations(lab):
    outcomes = {solver: lab.tune(solver, budget=Budget(None, 30)) for solver in ("toy", "other")}
    assert {name: outcome.evaluations for name, outcome in outcomes.items()} == {"toy": 30, "other": 30}
    assert {name: outcome.trials for name, outcome in outcomes.items()} == {"toy": 15, "other": 5}


def test_a_budget_below_the_default_runs_only_the_default(lab):
    outcome = lab.tune("other", budget=Budget(None, 5))
    assert (outcome.trials, outcome.best) == (1, outcome.default)


def test_a_solver_without_a_network_cannot_be_given_evaluations(lab):
    outcome = lab.tune("toy:cost=0", budget=Budget(None, 30))
    assert "no network evaluations" in outcome.reason
    assert not (lab.folder / "p.yaml").exists()


def test_failed_trials_count_and_do_not_end_the_search(lab):
    outcome = lab.tune("toy:refuse=0.1", budget=Budget(12))
    failed = [trial for trial in lab.trials if trial["failed"]]
    assert outcome.trials == 12
    assert 0 < outcome.failed == len(failed)
    assert lab.tune("toy:refuse=0.1", budget=Budget(12)).reused == 12  # the failed ones too
    assert all(trial["values"]["x"] > 0.1 and "x is too large" in trial["reason"] for trial in failed)
    assert float(outcome.setting["x"]) <= 0.1
    charged = lab.beside("evaluations").tune("toy:refuse=0.1", budget=Budget(None, 12 * EVALUATIONS_OF_A_TRIAL))
    assert charged.failed > 0
    assert charged.trials == 12  # a failed trial is charged the cost of the default


def test_a_default_that_fails_ends_the_search_with_its_reason(lab):
    outcome = lab.tune("toy:refuse=-0.5")
    assert outcome.best is None
    assert "x is too large" in outcome.reason
    assert lab.trials == []
    assert not (lab.folder / "p.yaml").exists()


def test_a_default_that_failed_is_run_again(lab):
    lab.tune()
    first = read_record(Results(lab.folder / "p.trials").find(lab.tuning().cells[0].hash))
    Results(lab.folder / "p.trials").write(dataclasses.replace(first, status="failed", reason="no weights", values={}))
    assert lab.tune().reused == 7


@pytest.mark.parametrize("strategy", ["tpe", "random", "grid"])
def test_trials_depend_on_the_seed_only(lab, strategy):
    def found(place: str, seed: int):
        there = lab.beside(place)
        there.tune(strategy=strategy, seed=seed, operators=PROBLEMS)
        return there.trials

    first = found("first", 1)
    assert found("again", 1) == first
    assert found("other", 2) != first


@pytest.mark.parametrize("stopped", [1, 3, 7])
def test_a_stopped_search_continues_like_an_uninterrupted_one(lab, stopped):
    lab.tune(operators=PROBLEMS, budget=Budget(12))
    whole = lab.trials
    there = lab.beside("stopped")
    half = there.tune(operators=PROBLEMS, budget=Budget(12), stop_after=stopped)
    assert (half.trials, half.interrupted) == (stopped, True)
    assert float(there.setting().made["best"]) == half.best  # the best so far is saved
    assert there.tune(operators=PROBLEMS, budget=Budget(12)).reused == stopped
    assert there.trials == whole
    assert dict(there.setting().parameters) == dict(lab.setting().parameters)


def test_a_larger_budget_continues_and_a_smaller_one_runs_nothing(lab):
    lab.tune(budget=Budget(5))
    more = lab.tune(budget=Budget(9))
    assert (more.trials, more.reused) == (9, 5)
    nine = lab.trials
    less = lab.tune(budget=Budget(3))
    assert (less.trials, less.reused) == (3, 3)
    assert lab.trials == nine[:3]
    there = lab.beside("at once")
    there.tune(budget=Budget(9))
    assert there.trials == nine


KILLED = """
import os, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
import toys
from cryobench.plan.grid import Request
from cryobench.registry import installed
from cryobench.results.store import Results, read_record
from cryobench.tuning.objective import measure_of
from cryobench.tuning.problems import from_request
from cryobench.tuning.search import Budget, Search, Tuning

request = Request(("toy:wait=0.02",), ("identity",), data=("spy",), images="4:6")
(task,) = from_request(request, installed())
search = Search("p", Path({folder!r}), measure_of("mse", ["mse"], installed()), budget=Budget(400))
Tuning(task, search, installed()).run()
"""


def test_a_killed_search_loses_only_the_running_cell(lab):
    """SIGKILL during a trial, and a partial folder as left by SIGKILL while a record is written."""
    folder = lab.folder / "killed"
    script = textwrap.dedent(KILLED).format(tests=os.path.dirname(os.path.dirname(__file__)), folder=str(folder))  # noqa: PTH120
    process = subprocess.Popen([sys.executable, "-c", script], env=os.environ | {"OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 120
    while len(records := list(folder.glob("p.trials/[!.]*/record.json"))) < 4:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = len(list(folder.glob("p.trials/[!.]*/record.json")))
    partial = folder / "p.trials" / ".partial-killed"
    partial.mkdir()
    (partial / "record.json").write_text(records[-1].read_text()[:-20])
    there = lab.beside("killed")
    assert there.tune("toy:wait=0.02", budget=Budget(finished + 4)).reused == finished
    lab.tune("toy:wait=0.02", budget=Budget(finished + 4))
    assert there.trials == lab.trials


@pytest.mark.parametrize(
    ("changed", "reused"),
    [
        ({"operators": ("identity", "fourier:0.5")}, None),
        ({"measure": Measure("psnr", "psnr", True)}, 0),
        ({"seed": 5}, 1),  # the default setting is the first trial of every search
        ({"strategy": "random"}, None),
        ({"strategy": "grid"}, None),
        ({"prune": False}, 8),
        ({"solver": "toy:x=0.1"}, 0),
    ],
)
def test_another_search_reuses_equal_cells_and_gives_the_same_result_as_alone(lab, changed, reused):
    lab.tune()
    outcome = lab.tune(**changed)
    assert reused is None or outcome.reused == reused
    alone = lab.beside("alone")
    alone.tune(**changed)
    assert lab.trials == alone.trials
    assert lab.tune(**changed).reused == outcome.trials


def test_force_runs_all_trials_again(lab):
    first = lab.tune()
    assert lab.tune().reused == 8
    again = lab.tune(force=True)
    assert (again.reused, again.setting) == (0, first.setting)
    assert lab.tune().reused == 8


def test_a_damaged_record_is_run_again(lab):
    lab.tune()
    trials = lab.trials
    record = next((lab.folder / "p.trials").glob("*/record.json"))
    record.write_text(record.read_text()[:-20])
    assert lab.tune().reused == 7
    assert lab.trials == trials


def test_a_full_disk_ends_the_search_and_the_same_command_continues(lab, monkeypatch):
    lab.tune(budget=Budget(3))

    def refuse(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(Path, "rename", refuse)
        with pytest.raises(ResultsError, match="No space left on device; finished cells are kept"):
            lab.tune()
    assert lab.tune().reused == 3


def test_pruning_stops_bad_trials_and_never_the_default(lab):
    with_it, without = lab.beside("with"), lab.beside("without")
    pruned = with_it.tune(operators=PROBLEMS, budget=Budget(20))
    whole = without.tune(operators=PROBLEMS, budget=Budget(20), prune=False)
    assert pruned.default == whole.default
    trials = with_it.trials
    assert not trials[0]["pruned"]
    assert pruned.pruned == sum(trial["pruned"] for trial in trials) > 0
    assert whole.pruned == 0
    assert all(len(trial["scores"]) < len(PROBLEMS) for trial in trials if trial["pruned"])
    assert pruned.evaluations < whole.evaluations == 20 * len(PROBLEMS) * EVALUATIONS_OF_A_TRIAL
    assert all(trial["score"] >= pruned.best for trial in trials if trial["score"] is not None)


def test_the_median_rule():
    finished = [[10.0, 0.0], [10.0, 2.0], [10.0, 4.0], [10.0, 6.0], [10.0, 8.0]]
    higher, lower = Measure("psnr", "psnr", True), Measure("mse", "mse", False)
    assert not worse_than_median([10.0], finished, higher)
    assert worse_than_median([9.9], finished, higher)
    assert worse_than_median([10.1], finished, lower)
    assert worse_than_median([10.0, 3.9], finished, higher)  # the mean so far, not the best problem so far
    assert not worse_than_median([10.0, 4.1], finished, higher)
    assert not worse_than_median([0.0], finished[:4], higher)  # too few finished trials


def test_a_solver_is_tuned_by_one_process_at_a_time(lab):
    lab.tune()
    with lab.tuning().lock(), pytest.raises(ResultsError, match="for the preset p by another process"):
        lab.tune()
    assert lab.tune("other").trials == 8


def test_the_preset_describes_the_search(lab):
    tuning = lab.tuning("toy", PROBLEMS)
    outcome = tuning.run()
    setting = lab.setting()
    made = setting.made
    assert dict(setting.parameters) == outcome.setting
    assert (made["by"], made["direction"], made["strategy"], made["budget"]) == ("mse", "lower", "tpe", "8 trials")
    assert (made["default"], made["best"], made["trials"]) == (outcome.default, outcome.best, 8)
    assert made["operators"] == list(PROBLEMS)
    assert (made["noises"], made["seeds"]) == (["none"], [0])
    assert set(made["versions"]) == {"cryobench", "cryobench-toys"}
    (images,) = setting.validation
    (dataset,) = {id(cell.dataset): cell.dataset for cell in tuning.cells}.values()
    assert (images.label, images.images) == ("spy", ("4", "5"))
    assert images.sha256 == dataset.image_digests
    best = installed().make("solvers", "toy")
    best = dataclasses.replace(best, x=float(outcome.setting["x"]), way=outcome.setting["way"])
    assert parameters_of(installed(), best, ["x", "way"]) == outcome.setting
    assert as_text(best.x) == outcome.setting["x"]


def test_an_unknown_column_is_refused(lab):
    with pytest.raises(ParameterError, match="'pnsr' is not a column of these metrics; did you mean 'psnr'"):
        measure_of("pnsr", ["psnr"], installed())


def test_unsupported_problems_are_left_out_and_reported(lab):
    problems = ("sumpool:2,count=4", *PROBLEMS)
    outcome = lab.tune("picky", operators=problems, budget=Budget(3))
    assert outcome.left_out == ("sumpool:2,count=4, noise none, spy: no blocks, please",)
    assert lab.setting("picky").made["operators"] == list(PROBLEMS[:2])
    assert all(len(trial["scores"]) == 2 for trial in lab.trials if trial["score"] is not None)
    alone = lab.beside("alone").tune("picky", operators=PROBLEMS[:2], budget=Budget(3))
    assert (alone.default, alone.best) == (outcome.default, outcome.best)
    none = lab.beside("none").tune("picky", operators=PROBLEMS[2:])
    assert (none.best, none.reason) == (None, "sumpool:2,count=4, noise none, spy: no blocks, please")
