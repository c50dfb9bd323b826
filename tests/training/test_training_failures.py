"""Every failure of a run keeps a usable checkpoint and is reported."""

from __future__ import annotations

import errno
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import assert_same, forked, printed

from cryobench.errors import CryobenchError, DataError, ResultsError, TrainingError
from cryobench.training import checkpoint, loop
from cryobench.training.checkpoint import State
from cryobench.training.objectives import pipeline


def contents(folder: Path) -> dict[str, bytes]:
    """The files that must not change: checkpoint and pipeline. Partial files would be included."""
    kept = {path for path in folder.rglob("*") if path.is_file() and path.name not in ("loss.csv", ".lock")}
    return {str(path.relative_to(folder)): path.read_bytes() for path in kept}


@pytest.mark.parametrize("every", [1, 4])
def test_an_infinite_loss_keeps_the_last_good_checkpoint(run, tmp_path, every):
    """every = 1: the update that makes the weights diverge has a finite loss; its weights must not be saved."""
    whole = run(tmp_path / "whole")
    out = tmp_path / "out"
    training = run.training(out)
    training.run(lambda: training.step == 4)
    before = contents(out)
    with pytest.raises(TrainingError, match=r"at step \d+ the loss .*\b(nan|inf)\b") as error:
        run(out, lr=1e30, checkpoint_every=every)
    assert (
        f"the checkpoint in {out / checkpoint.NAME} is from an earlier step. Continue with a smaller --lr than 1e+30"
        in str(error.value)
    )
    assert "\n" not in str(error.value)
    assert contents(out) == before
    assert_same(run(out), whole)


def test_a_loss_that_is_not_a_number_stops_at_once(run, tmp_path, monkeypatch):
    losses = loop.Training._losses
    calls = []

    def diverging(self, network, batch):
        calls.append(0)
        return losses(self, network, batch) * (float("nan") if len(calls) == 3 else 1)

    monkeypatch.setattr(loop.Training, "_losses", diverging)
    with pytest.raises(TrainingError, match=r"at step 3 the loss is nan .* there is no checkpoint yet"):
        run(tmp_path / "out")
    assert len(calls) == 3


def error_with_limited_files(max_bytes: int, call, output: Path) -> str:
    """The error of `call` in a process that cannot write larger files, as on a full disk."""
    resource = pytest.importorskip("resource", reason="no file size limits on this system")

    def start():  # Python ignores SIGXFSZ
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (max_bytes, before[1]))
        try:
            call()
        except CryobenchError as error:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            print(f"{type(error).__name__}: {error}")
            sys.exit(3)

    child = forked(start, output)
    child.join()
    assert child.exitcode == 3, printed(output)
    return output.read_text()


def test_a_full_disk_keeps_the_previous_checkpoint(run, tmp_path):
    whole = run(tmp_path / "whole")
    out = tmp_path / "out"
    training = run.training(out)
    training.run(lambda: training.step == 4)
    before = contents(out)
    error = error_with_limited_files(len(before[checkpoint.NAME]) // 2, lambda: run(out), tmp_path / "output.txt")
    assert "ResultsError: the checkpoint of step 6 cannot be written" in error
    assert "the previous one is intact. Free some space; the same command continues from there" in error
    assert error.count("\n") == 1
    assert contents(out) == before
    assert_same(run(out), whole)


def test_a_full_disk_keeps_the_previous_pipeline(run, tmp_path):
    run(tmp_path / "out", steps=4)
    before = contents(tmp_path / "out")
    training = run.training(tmp_path / "out", steps=4)
    torch.nn.init.zeros_(next(training.averaged.parameters()))
    size = len(before[pipeline.WEIGHTS])
    error = error_with_limited_files(size // 2, training._export, tmp_path / "output.txt")
    assert "the model cannot be written" in error
    assert contents(tmp_path / "out") == before
    training._export()
    assert contents(tmp_path / "out") != before


def test_a_log_that_cannot_be_extended_stops_the_run_at_the_next_checkpoint(run, tmp_path):
    whole = run(tmp_path / "whole")
    out = tmp_path / "out"
    training = run.training(out)
    training.run(lambda: training.step == 4)
    before = contents(out)
    limit = (out / "loss.csv").stat().st_size + 5
    assert "loss.csv cannot be written" in error_with_limited_files(limit, lambda: run(out), tmp_path / "output.txt")
    assert contents(out) == before
    assert_same(run(out), whole)
    assert (out / "loss.csv").read_text() == (tmp_path / "whole" / "loss.csv").read_text()


def test_a_failing_fsync_is_reported(run, tmp_path, monkeypatch):
    run(tmp_path / "out", steps=4)
    before = contents(tmp_path / "out")

    def fail(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint.os, "fsync", fail)
    with pytest.raises(ResultsError, match="No space left on device"):
        run(tmp_path / "out")
    monkeypatch.undo()
    assert contents(tmp_path / "out") == before
    state = State.load(tmp_path / "out")
    assert state is not None
    assert state.step == 4


def test_an_image_without_contrast_is_named(run, tmp_path):
    images = np.load(run.data)
    images[:] = 1
    np.save(run.data, images)
    with pytest.raises(DataError, match=r"image \d of blobs\.npy is constant or not finite"):
        run(tmp_path / "out")
