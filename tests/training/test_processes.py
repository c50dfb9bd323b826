"""Several processes train the same network as one, and stop together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from runs import two_processes

from cryobench.cli import main
from cryobench.errors import DataError
from cryobench.training.checkpoint import State
from cryobench.training.images import Images

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
        reason="this build of torch has no gloo, the backend for CPU processes",
    ),
]
ROOT = Path(__file__).resolve().parents[2]


def command(run, out, **changed) -> list[str]:
    settings = run.settings(**changed)
    given = ("objective", "steps", "batch", "warmup", "lr", "checkpoint_every")
    options = [f"--{name.replace('_', '-')}={getattr(settings, name)}" for name in given]
    return ["train", "--data", str(run.data), "--out", str(out), "--sample-every=1000", *options]


def trained(arguments, monkeypatch):
    def call(rank: int) -> None:
        monkeypatch.setattr(sys, "argv", ["cryobench", *arguments])
        main()

    return call


def disturbed(arguments, monkeypatch, act):
    """As `trained`; the second process calls `act()` once, before its batch of step 3."""

    def call(rank: int) -> None:
        batch, acted = Images.batch, []

        def disturb(self, step, size, part=slice(None)):
            if rank == 1 and step == 3 and not acted:
                acted.append(True)
                act()
            return batch(self, step, size, part)

        monkeypatch.setattr(Images, "batch", disturb)
        trained(arguments, monkeypatch)(rank)

    return call


def distance(one: State, other: State) -> float:
    return sum(float((one.averaged[n] - other.averaged[n]).square().sum()) for n in one.averaged) ** 0.5


def test_accelerate_launch_trains_the_network_of_one_process(run, tmp_path):
    begun = run.training(tmp_path / "one")
    start = {name: tensor.clone() for name, tensor in begun.averaged.state_dict().items()}
    begun.run()
    one = State.load(tmp_path / "one")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes=2", "--num_machines=1",
              "--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0", "-m", "cryobench"]  # fmt: skip
    done = subprocess.run(
        launch + command(run, tmp_path / "two"), capture_output=True, text=True, timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("the model is in") == 1  # only the first process reports
    two = State.load(tmp_path / "two")
    assert one is not None
    assert two is not None
    assert two.step == one.step == 8
    moved = sum(float((one.averaged[n] - start[n]).square().sum()) for n in start) ** 0.5
    assert distance(one, two) < 1e-3 * moved
    rows = [(tmp_path / name / "loss.csv").read_text().splitlines() for name in ("one", "two")]
    assert len(rows[0]) == len(rows[1]) == 9
    losses = [[float(row.split(",")[1]) for row in lines[1:]] for lines in rows]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_two_processes_continue_a_run_of_one(run, tmp_path, monkeypatch):
    training = run.training(tmp_path / "out")
    training.run(lambda: training.step == 4)
    ended = two_processes(trained(command(run, tmp_path / "out"), monkeypatch), tmp_path)
    assert [code for code, _ in ended] == [0, 0], ended
    assert "continuing after step 4 of 8" in ended[0][1]
    assert ended[1][1] == ""
    two, whole = State.load(tmp_path / "out"), run(tmp_path / "whole")
    assert two is not None
    assert distance(two, whole) < 1e-4


def test_an_infinite_loss_stops_all_processes_and_the_first_one_reports_it(run, tmp_path, monkeypatch):
    run(tmp_path / "out", steps=4)
    ended = two_processes(trained(command(run, tmp_path / "out", lr=1e30), monkeypatch), tmp_path)
    assert [code for code, _ in ended] == [1, 1], ended
    assert "Continue with a smaller --lr" in ended[0][1]
    assert ended[1][1] == ""
    state = State.load(tmp_path / "out")
    assert state is not None
    assert state.step == 4


def test_an_error_in_one_process_stops_all(run, tmp_path, monkeypatch):
    def fail() -> None:
        raise DataError("image 5 is gone")

    ended = two_processes(disturbed(command(run, tmp_path / "out"), monkeypatch, fail), tmp_path)
    assert [code for code, _ in ended] == [1, 1], ended
    assert "error: image 5 is gone" in ended[0][1]
    assert ended[1][1] == ""


def test_a_signal_to_one_process_stops_all_at_one_step(run, tmp_path, monkeypatch):
    def interrupt() -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    ended = two_processes(disturbed(command(run, tmp_path / "out"), monkeypatch, interrupt), tmp_path)
    assert [code for code, _ in ended] == [143, 143], ended
    assert "stopped after step 4 of 8" in ended[0][1]
    state = State.load(tmp_path / "out")
    assert state is not None
    assert state.step == 4


def test_a_batch_that_cannot_be_divided_is_refused_once(run, tmp_path, monkeypatch):
    ended = two_processes(trained(command(run, tmp_path / "out", batch=3), monkeypatch), tmp_path)
    assert [code for code, _ in ended] == [2, 2], ended
    assert ended[0][1] == "error: --batch 3 cannot be divided among 2 processes; give a multiple of 2\n"
    assert ended[1][1] == ""
