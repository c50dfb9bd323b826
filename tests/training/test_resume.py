"""A stopped run continues to the same weights as an uninterrupted one; a folder belongs to one run."""

from __future__ import annotations

import dataclasses
import os
import random
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.training_utils import EMAModel
from runs import assert_same, forked, printed

from cryobench.errors import CryobenchError, ResultsError
from cryobench.training import checkpoint, export, log, loop
from cryobench.training.checkpoint import State
from cryobench.training.objectives import pipeline

pytestmark = pytest.mark.slow


class Recorder(loop.TrainingObserver):
    """Records messages, steps and losses."""

    def __init__(self):
        self.steps: list[int] = []
        self.messages: list[str] = []
        self.losses: list[float] = []

    def stepped(self, step, loss):
        self.steps.append(step)
        self.losses.append(loss)

    def say(self, message):
        self.messages.append(message)

    def warn(self, message):
        self.messages.append(f"warning: {message}")


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def logged(folder: Path) -> int:
    path = folder / log.NAME
    return max(path.read_text().count("\n") - 1, 0) if path.exists() else 0


def test_a_run_killed_at_random_steps_ends_with_the_weights_of_an_uninterrupted_one(run, tmp_path):
    run = dataclasses.replace(run, validation=run.data)
    long = {"steps": 30, "checkpoint_every": 3, "validate_every": 10}
    whole = run(tmp_path / "whole", **long)
    out, killed_at = tmp_path / "killed", []
    for low, high in ((1, 12), (13, 26)):
        step = random.randint(low, high)
        child = forked(lambda: run(out, **long), tmp_path / "output.txt")
        while logged(out) < step and child.is_alive():
            time.sleep(0.001)
        child.kill()
        child.join()
        state = State.load(out)
        killed_at.append((step, logged(out), state and state.step))
        assert child.exitcode == -9, (killed_at, printed(tmp_path / "output.txt"))
        assert state is None or state.step < 30, killed_at
    assert_same(run(out, **long), whole)
    assert (out / log.NAME).read_text() == (tmp_path / "whole" / log.NAME).read_text(), killed_at
    names = set(files(tmp_path / "whole"))
    assert set(files(out)) == names, f"{killed_at}: partial files of the killed run are left"
    weights = pipeline.WEIGHTS
    assert files(out)[weights] == files(tmp_path / "whole")[weights]


def test_a_requested_stop_keeps_the_current_step(run, tmp_path):
    whole = run(tmp_path / "whole")
    training = run.training(tmp_path / "stopped")
    assert not training.run(lambda: training.step == 5)
    state = State.load(tmp_path / "stopped")
    assert state is not None
    assert state.step == 5
    assert export.read_card(tmp_path / "stopped")["steps"] == 5
    assert_same(run(tmp_path / "stopped"), whole)


def test_a_finished_run_is_not_changed(run, tmp_path):
    run(tmp_path / "out")
    before = files(tmp_path / "out")
    seen = Recorder()
    assert run.training(tmp_path / "out", seen).run()
    assert seen.messages == ["nothing to do: all 8 steps are done"]
    assert seen.steps == []
    assert files(tmp_path / "out") == before


def test_a_run_killed_before_writing_its_pipeline_writes_it_later(run, tmp_path, monkeypatch):
    run(tmp_path / "whole")
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(loop.Training, "_export", lambda self: os._exit(9) if self.step == 8 else None)
        child = forked(lambda: run(out), tmp_path / "output.txt")
        child.join()
    assert child.exitcode == 9
    assert not (out / "model_index.json").exists()
    run(out)
    assert files(out).keys() == files(tmp_path / "whole").keys()
    weights = pipeline.WEIGHTS
    assert files(out)[weights] == files(tmp_path / "whole")[weights]
    assert export.read_card(out)["steps"] == 8


def test_a_run_can_be_extended_and_not_shortened(run, tmp_path):
    run(tmp_path / "out")
    seen = Recorder()
    run.training(tmp_path / "out", seen, steps=10).run()
    assert seen.steps == [9, 10]
    with pytest.raises(ResultsError, match=r"a run of 10 steps, but --steps is 8; give --steps 10 or more"):
        run.training(tmp_path / "out")


def test_a_constant_validation_loss_ends_a_run_for_good(run, tmp_path):
    run = dataclasses.replace(run, validation=run.data)
    given = {"steps": 40, "patience": 2, "validate_every": 2, "lr": 1e-30}  # no learning
    seen = Recorder()
    assert run.training(tmp_path / "out", seen, **given).run()
    state = State.load(tmp_path / "out")
    assert state is not None
    assert state.step == state.best_step + 2 < 40
    assert "stopped: the validation loss has not decreased for 2 steps" in seen.messages[-1]
    assert any(
        message.startswith("warning: some images are used for both training and validation")
        for message in seen.messages
    )
    again = Recorder()
    assert run.training(tmp_path / "out", again, **given).run()
    assert again.steps == []
    assert "nothing to do: the validation loss has not decreased" in again.messages[-1]


def test_patience_does_not_end_a_run_before_the_first_validation(run, tmp_path):
    run = dataclasses.replace(run, validation=run.data)
    seen = Recorder()
    run.training(tmp_path / "out", seen, patience=2, validate_every=6).run()
    assert seen.steps[:6] == list(range(1, 7))


def test_the_result_is_the_average_of_the_weights(run, tmp_path):
    """A_k = d_k A_(k-1) + (1 - d_k) W_k, compared with diffusers' average, which differs only in the first step."""
    training = run.training(tmp_path / "out", ema=0.6)
    names = [name for name, _ in training.averaged.named_parameters()]
    theirs: list[EMAModel] = []

    class Follow(loop.TrainingObserver):
        def stepped(self, step, loss):
            if not theirs:
                theirs.append(EMAModel([p.clone() for p in training.averaged.parameters()], decay=0.6))
                theirs[0].optimization_step = 1
            else:
                theirs[0].step(training._own().parameters())

    training.observer = Follow()
    training.run()
    state = State.load(tmp_path / "out")
    assert state is not None
    for name, expected in zip(names, theirs[0].shadow_params, strict=True):
        torch.testing.assert_close(state.averaged[name], expected, atol=1e-6, rtol=1e-5)
    assert not all(torch.equal(state.averaged[name], state.network[name]) for name in names)


def test_the_loss_decreases_on_a_toy_set(run, tmp_path):
    seen = Recorder()
    run.training(tmp_path / "out", seen, steps=60, lr=4e-3, warmup=5, checkpoint_every=60).run()
    assert np.mean(seen.losses[-10:]) < 0.5 * np.mean(seen.losses[:5])


def test_a_source_may_hold_a_single_image(run, tmp_path):
    np.save(tmp_path / "few.npy", np.load(run.data)[:1])
    assert dataclasses.replace(run, data=tmp_path / "few.npy")(tmp_path / "out").step == 8


def test_a_folder_belongs_to_one_run_and_is_locked(run, tmp_path):
    first = run.training(tmp_path / "out")
    with pytest.raises(ResultsError, match="another process trains into"):
        run.training(tmp_path / "out")
    first.run()
    with pytest.raises(ResultsError, match=r"another training run \(batch was 4, is 8; seed was 0, is 7\)"):
        run.training(tmp_path / "out", batch=8, seed=7)
    run.training(tmp_path / "out").run()  # refused runs hold no lock


def test_images_of_another_size_are_refused(run, tmp_path):
    run(tmp_path / "out")
    np.save(run.data, np.load(run.data)[:, :16, :16])
    with pytest.raises(ResultsError, match="was on images of 32 x 32, got 16 x 16"):
        run.training(tmp_path / "out")


def broken_checkpoint(out: Path) -> None:
    out.mkdir()
    (out / checkpoint.NAME).write_bytes(b"not written by torch")


def other_model(out: Path) -> None:
    (out / "unet").mkdir(parents=True)


def a_file(out: Path) -> None:
    out.write_text("")


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (broken_checkpoint, "is not a checkpoint of this version"),
        (other_model, r"holds a model but no checkpoint\.pt to continue from"),
        (a_file, "cannot train into .*out: Not a directory"),
    ],
)
def test_a_folder_with_something_else_is_refused(run, tmp_path, prepare, message):
    prepare(tmp_path / "out")
    with pytest.raises(CryobenchError, match=message) as error:
        run.training(tmp_path / "out")
    assert "\n" not in str(error.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root can write everywhere")
def test_a_folder_that_cannot_be_written_is_refused(run, tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(ResultsError, match=r"cannot train into .*Permission denied"):
        run.training(tmp_path / "closed")


def test_validation_images_of_another_size_are_refused(run, tmp_path):
    np.save(tmp_path / "small.npy", np.load(run.data)[:, :16, :16])
    with pytest.raises(CryobenchError, match="training images are 32 x 32, validation images 16 x 16"):
        dataclasses.replace(run, validation=tmp_path / "small.npy").training(tmp_path / "out")
    assert not (tmp_path / "out").exists()
