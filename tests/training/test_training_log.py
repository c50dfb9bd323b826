"""The log: one complete row per number, and no duplicates when a run continues."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from cryobench.errors import ResultsError
from cryobench.training.log import NAME, Log

HEAD = "step,loss,validation_loss,learning_rate"


@pytest.fixture(autouse=True)
def no_board(monkeypatch):
    """Make importing TensorBoard fail, as if it were not installed."""
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)


def lines(folder) -> list[str]:
    return (folder / NAME).read_text().splitlines()


def test_a_continued_log_drops_rows_that_are_computed_again(tmp_path):
    log = Log(tmp_path, 0)
    for step in range(1, 6):
        log.add(step, "loss", 0.5 / step, rate=1e-3)
    log.add(4, "validation_loss", 0.25)
    assert len(lines(tmp_path)) == 7  # each row is written at once
    log.close()
    log = Log(tmp_path, 3)
    log.add(4, "loss", 0.125, rate=1e-3)
    log.close()
    assert lines(tmp_path) == [HEAD, "1,0.5,,0.001", "2,0.25,,0.001", "3,0.166667,,0.001", "4,0.125,,0.001"]


@pytest.mark.parametrize("old", ["", "step,loss\n1,2\n", f"{HEAD}\n7,0.1,,0.001\n", "\x00\x01 not text, nor rows"])
def test_a_new_run_starts_a_new_log(tmp_path, old):
    (tmp_path / NAME).write_text(old)
    Log(tmp_path, 0).close()
    assert lines(tmp_path) == [HEAD]


def test_an_incomplete_last_row_is_dropped(tmp_path):
    (tmp_path / NAME).write_text(f"{HEAD}\n1,0.5,,0.001\n2,0.")
    Log(tmp_path, 5).close()
    assert lines(tmp_path) == [HEAD, "1,0.5,,0.001"]


def test_a_log_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / NAME).mkdir()
    with pytest.raises(ResultsError, match=r"the log .*loss\.csv cannot be written"):
        Log(tmp_path, 0)


def test_tensorboard_gets_the_same_numbers_if_installed(tmp_path, monkeypatch):
    made = []

    class Writer:
        def __init__(self, folder, purge_step):
            self.opened, self.scalars, self.closed = (folder, purge_step), [], False
            made.append(self)

        def add_scalar(self, name, value, step):
            self.scalars.append((name, value, step))

        def flush(self): ...

        def close(self):
            self.closed = True

    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    log = Log(tmp_path, 3)
    log.add(4, "loss", 0.5, rate=1e-3)
    log.add(4, "validation_loss", 0.25)
    log.flush()
    log.close()
    (writer,) = made
    assert writer.opened == (str(tmp_path / "tensorboard"), 4)  # steps beyond 3 are computed again
    assert writer.scalars == [("loss", 0.5, 4), ("learning_rate", 1e-3, 4), ("validation_loss", 0.25, 4)]
    assert writer.closed
