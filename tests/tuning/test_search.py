"""The search: the default first, one budget for all, the known optimum found, and the same after any stop."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from cryobench.errors import CryobenchError, ParameterError
from cryobench.files import exclusively
from cryobench.plan.presets import image_digest, parameters_of
from cryobench.registry import installed
from cryobench.spec import as_text
from cryobench.tuning.objective import Measure, falls_behind, measure_of
from cryobench.tuning.search import Budget, Observer

PROBLEMS = ("identity", "fourier:0.5", "sumpool:2,count=4")
EVALUATIONS_OF_A_TRIAL = 2  # two images


class StopAfter(Observer):
    """Ctrl-C behind so many trials."""

    def __init__(self, trials: int):
        self.left = trials

    def trial_finished(self, *_) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("strategy", ["tpe", "random", "grid"])
def test_the_best_known_setting_is_found(lab, strategy):
    outcome = lab.tune(strategy=strategy, budget=Budget(40), points=11)
    assert outcome.setting["way"] == "good"
    assert abs(float(outcome.setting["x"]) - 0.3) < 0.11
    assert outcome.default == pytest.approx(((0 - 0.3) ** 2 + 1) / 4, rel=1e-4)
    assert outcome.best == pytest.approx((float(outcome.setting["x"]) - 0.3) ** 2 / 4, abs=1e-6)


def test_tpe_comes_nearer_than_chance(lab):
    budget = Budget(40)
    by_chance = [lab.beside(f"r{seed}").tune("toy:way=good", strategy="random", seed=seed, budget=budget).best
                 for seed in range(3)]  # fmt: skip
    by_tpe = [lab.beside(f"t{seed}").tune("toy:way=good", seed=seed, budget=budget).best for seed in range(3)]
    assert sum(by_tpe) < sum(by_chance)


def test_higher_or_lower_is_better_as_the_column_says(lab):
    psnr = lab.tune(measure=measure_of("psnr", ["psnr", "mse"], installed()), operators=("sumpool:2,count=1",))
    assert psnr.best > psnr.default


@pytest.mark.parametrize("solver", ["toy", "other", "toy:x=0.3", "toy:0.3"])
def test_the_default_comes_first_and_the_best_is_at_least_as_good(lab, solver):
    outcome = lab.tune(solver)
    first, *_ = lab.trials(solver)
    made = installed().make("solvers", solver)
    assert first["values"] == {name: getattr(made, name) for name in first["values"]}
    assert first["score"] == outcome.default
    assert outcome.best <= outcome.default


def test_what_the_spec_states_is_not_searched_and_is_kept(lab):
    lab.tune("toy:x=0.25,cost=2")
    assert all(set(trial["values"]) == {"way"} for trial in lab.trials("toy:x=0.25,cost=2"))
    assert dict(lab.setting().parameters) == {"x": "0.25", "way": "good", "cost": "2"}


def test_every_solver_has_the_same_number_of_trials(lab):
    toy, other = (lab.tune(solver, operators=PROBLEMS, budget=Budget(11)) for solver in ("toy", "other"))
    assert toy.trials == other.trials == 11
    assert len(lab.trials("toy", PROBLEMS)) == len(lab.trials("other", PROBLEMS)) == 11


def test_every_solver_has_the_same_evaluations_and_none_more(lab):
    outcomes = {solver: lab.tune(solver, budget=Budget(None, 30)) for solver in ("toy", "other")}
    assert {name: outcome.evaluations for name, outcome in outcomes.items()} == {"toy": 30, "other": 30}
    assert {name: outcome.trials for name, outcome in outcomes.items()} == {"toy": 15, "other": 5}


def test_a_budget_below_the_default_runs_the_default_alone(lab):
    outcome = lab.tune("other", budget=Budget(None, 5))
    assert (outcome.trials, outcome.best) == (1, outcome.default)


def test_a_solver_without_a_network_cannot_be_given_evaluations(lab):
    outcome = lab.tune("toy:cost=0", budget=Budget(None, 30))
    assert "no network evaluations" in outcome.reason
    assert not (lab.folder / "p.yaml").exists()


def test_settings_that_fail_count_and_do_not_end_the_search(lab):
    outcome = lab.tune("toy:refuse=0.1", budget=Budget(12))
    failed = [trial for trial in lab.trials("toy:refuse=0.1") if trial["failed"]]
    assert outcome.trials == 12
    assert 0 < outcome.failed == len(failed)
    assert all(trial["values"]["x"] > 0.1 and "x is too large" in trial["reason"] for trial in failed)
    assert float(outcome.setting["x"]) <= 0.1
    charged = lab.beside("evaluations").tune("toy:refuse=0.1", budget=Budget(None, 12 * EVALUATIONS_OF_A_TRIAL))
    assert charged.failed > 0
    assert charged.trials == 12  # a failed one is charged what the default cost


def test_a_default_that_fails_ends_the_search_with_its_reason_and_can_be_put_right(lab):
    outcome = lab.tune("toy:refuse=-0.5")
    assert outcome.best is None
    assert "x is too large" in outcome.reason
    assert lab.trials("toy:refuse=-0.5") == []
    assert not (lab.folder / "p.yaml").exists()


@pytest.mark.parametrize("strategy", ["tpe", "random", "grid"])
def test_the_same_seed_makes_the_same_trials_and_another_seed_others(lab, strategy):
    def found(place: str, seed: int):
        there = lab.beside(place)
        there.tune(strategy=strategy, seed=seed, operators=PROBLEMS)
        return there.trials("toy", PROBLEMS, strategy=strategy, seed=seed)

    first = found("first", 1)
    assert found("again", 1) == first
    assert found("other", 2) != first


@pytest.mark.parametrize("stopped", [1, 3, 7])
def test_a_search_that_was_stopped_goes_on_as_it_would_have(lab, stopped):
    lab.tune(operators=PROBLEMS, budget=Budget(12))
    whole = lab.trials("toy", PROBLEMS)
    there = lab.beside("stopped")
    half = there.tune(operators=PROBLEMS, budget=Budget(12), observer=StopAfter(stopped))
    assert (half.trials, half.interrupted) == (stopped, True)
    assert float(there.setting().made["best"]) == half.best  # the best so far is kept
    assert there.tune(operators=PROBLEMS, budget=Budget(12)).reused == stopped
    assert there.trials("toy", PROBLEMS) == whole
    assert dict(there.setting().parameters) == dict(lab.setting().parameters)


def test_a_larger_budget_goes_on_and_a_smaller_runs_nothing(lab):
    lab.tune(budget=Budget(5))
    more = lab.tune(budget=Budget(9))
    assert (more.trials, more.reused) == (9, 5)
    less = lab.tune(budget=Budget(3))
    assert (less.trials, less.reused) == (9, 9)
    there = lab.beside("at once")
    there.tune(budget=Budget(9))
    assert there.trials() == lab.trials()


KILLED = """
import os, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
import toys
from cryobench.plan.grid import Request
from cryobench.registry import installed
from cryobench.tuning.objective import measure_of
from cryobench.tuning.problems import from_request
from cryobench.tuning.search import Budget, Search, Tuning

request = Request(("toy:wait=0.02",), ("identity",), data=("spy",), images="4:6")
(task,) = from_request(request, installed())
search = Search("p", Path({folder!r}), measure_of("mse", ["mse"], installed()), budget=Budget(400))
Tuning(task, search, installed()).run()
"""


def test_a_killed_search_loses_the_trial_under_way_and_no_other(lab):
    """SIGKILL in the middle of a trial, then a last line cut as if the kill had come in the middle of its writing."""
    folder = lab.folder / "killed"
    script = textwrap.dedent(KILLED).format(tests=os.path.dirname(os.path.dirname(__file__)), folder=str(folder))  # noqa: PTH120
    process = subprocess.Popen([sys.executable, "-c", script], env=os.environ | {"OMP_NUM_THREADS": "1"})
    journal = folder / "p.journal"
    deadline = time.monotonic() + 120
    while not (journal.exists() and journal.read_bytes().count(b'"op_code":4') >= 4):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    there = lab.beside("killed")
    finished = len(there.trials("toy:wait=0.02"))
    assert finished >= 4
    with journal.open("ab") as file:
        file.write(journal.read_bytes().splitlines(keepends=True)[-1][:-20])
    assert there.tune("toy:wait=0.02", budget=Budget(finished + 4)).reused == finished
    lab.tune("toy:wait=0.02", budget=Budget(finished + 4))
    assert there.trials("toy:wait=0.02") == lab.trials("toy:wait=0.02")


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"operators": ("identity", "fourier:0.5")}, "problems"),
        ({"seed": 5}, "search seed"),
        ({"strategy": "random"}, "strategy"),
        ({"strategy": "grid"}, "strategy"),
        ({"budget": Budget(None, 100)}, "kind of budget"),
        ({"prune": False}, "pruning"),
        ({"solver": "toy:x=0.1"}, "solver"),
    ],
)
def test_trials_of_another_question_are_refused_and_dropped_with_force(lab, changed, named):
    lab.tune()
    with pytest.raises(ParameterError, match=f"trials of toy with another {named}"):
        lab.tune(**changed)
    anew = lab.tune(**changed, force=True)
    assert anew.reused == 0
    assert lab.tune(**changed).reused == anew.trials


def test_pruning_gives_up_what_falls_behind_and_never_touches_the_default(lab):
    with_it, without = lab.beside("with"), lab.beside("without")
    pruned = with_it.tune(operators=PROBLEMS, budget=Budget(20))
    whole = without.tune(operators=PROBLEMS, budget=Budget(20), prune=False)
    assert pruned.default == whole.default
    trials = with_it.trials("toy", PROBLEMS)
    assert not trials[0]["pruned"]
    assert pruned.pruned == sum(trial["pruned"] for trial in trials) > 0
    assert whole.pruned == 0
    assert all(len(trial["scores"]) < len(PROBLEMS) for trial in trials if trial["pruned"])
    assert pruned.evaluations < whole.evaluations == 20 * len(PROBLEMS) * EVALUATIONS_OF_A_TRIAL
    assert all(trial["score"] >= pruned.best for trial in trials if trial["score"] is not None)


def test_the_median_rule():
    finished = [[10.0, 0.0], [10.0, 2.0], [10.0, 4.0], [10.0, 6.0], [10.0, 8.0]]
    higher, lower = Measure("psnr", "psnr", True), Measure("mse", "mse", False)
    assert not falls_behind([10.0], finished, higher)
    assert falls_behind([9.9], finished, higher)
    assert falls_behind([10.1], finished, lower)
    assert falls_behind([10.0, 3.9], finished, higher)  # the mean so far, and not the best step so far
    assert not falls_behind([10.0, 4.1], finished, higher)
    assert not falls_behind([0.0], finished[:4], higher)  # too few to go by


def test_a_solver_is_tuned_by_one_process_at_a_time(lab):
    lab.tune()
    with exclusively(lab.folder / ".p-toy.lock"), pytest.raises(ParameterError, match="by another process"):
        lab.tune()
    assert lab.tune("other").trials == 8


def test_the_preset_says_how_it_was_found(lab):
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
    assert images.sha256 == tuple(image_digest(image[0].numpy()) for image in dataset.images)
    best = installed().make("solvers", "toy")
    best = dataclasses.replace(best, x=float(outcome.setting["x"]), way=outcome.setting["way"])
    assert parameters_of(installed(), best, ["x", "way"]) == outcome.setting
    assert as_text(best.x) == outcome.setting["x"]


def test_a_column_that_no_metric_has_is_refused(lab):
    with pytest.raises(ParameterError, match="'pnsr' is no column of these metrics; did you mean 'psnr'"):
        measure_of("pnsr", ["psnr"], installed())


def test_a_journal_that_is_none_is_said_so(lab):
    lab.folder.mkdir()
    (lab.folder / "p.journal").write_text("what is this\n")
    with pytest.raises(CryobenchError, match="is no journal of trials") as error:
        lab.tune()
    assert "\n" not in str(error.value)


def test_problems_that_a_solver_cannot_take_are_left_out_and_told(lab):
    problems = ("sumpool:2,count=4", *PROBLEMS)
    outcome = lab.tune("picky", operators=problems, budget=Budget(3))
    assert outcome.left_out == ("sumpool:2,count=4, noise none, spy: no blocks, please",)
    assert lab.setting("picky").made["operators"] == list(PROBLEMS[:2])
    assert all(len(trial["scores"]) == 2 for trial in lab.trials("picky", problems) if trial["score"] is not None)
    alone = lab.beside("alone").tune("picky", operators=PROBLEMS[:2], budget=Budget(3))
    assert (alone.default, alone.best) == (outcome.default, outcome.best)
    none = lab.beside("none").tune("picky", operators=PROBLEMS[2:])
    assert (none.best, none.reason) == (None, "sumpool:2,count=4, noise none, spy: no blocks, please")
