"""The dashboards of `--live`."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from cryobench.cli import progress
from cryobench.cli.live import ChunkDashboard, watching_chunks
from cryobench.runner.checks import batches


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands at clock[0]."""
    now = [100.0]
    monkeypatch.setattr("cryobench.cli.progress.time.monotonic", lambda: now[0])
    return now


def shown(dashboard: ChunkDashboard) -> list[str]:
    console = Console(file=io.StringIO(), width=120)
    console.print(dashboard.shown())
    return [" ".join(line.split()) for line in console.file.getvalue().splitlines()]


def test_the_dashboard_of_chunks(clock):
    dashboard = ChunkDashboard(batches(250, 100))
    dashboard.done(0)
    dashboard.started(0, "0")
    dashboard.started(1, "tcp://[bold]")
    assert "0 of 250 images" in shown(dashboard)[0]
    clock[0] += 50
    dashboard.finished(0)
    dashboard.done(100)
    text = shown(dashboard)
    assert text[0].endswith("100 of 250 images, 2 images/s, 75 s left")
    assert text[1:] == ["workers", "worker images since done", "0 idle 100", "tcp://[bold] 100 to 199 50 s 0"]
    dashboard.warn("chunk 1: its worker died; running it again")
    dashboard.started(1, "0")
    assert shown(dashboard)[3:] == ["0 100 to 199 0 s 100", "chunk 1: its worker died; running it again"]
    dashboard.finished(1)
    dashboard.started(2, "0")
    assert shown(dashboard)[3].startswith("0 200 to 249 0 s 200")


def test_many_workers_are_counted():
    dashboard = ChunkDashboard(batches(100, 1))
    for chunk in range(30):
        dashboard.started(chunk, f"{chunk:02d}")
    assert shown(dashboard)[-1] == "and 22 more workers"


def test_without_a_terminal_there_is_no_dashboard(clock, capsys):
    with watching_chunks(batches(10, 5), live=True, quiet=False) as observer:
        assert isinstance(observer, progress.ChunkProgress)
        observer.done(0)
        clock[0] += 40
        observer.done(5)
    assert capsys.readouterr().err == "5 of 10 images, 0.125 images/s, 40 s left\n"


def test_a_single_file_has_no_dashboard(cli, blobs):
    code, out, err = cli("measure", "-o", "identity", "--data", blobs, "--out", "y.npz", "--live")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "--live" in err


def test_a_long_cell_shows_its_time_left(clock, capsys):
    cell = SimpleNamespace(labels={"solver": "dps", "operator": "sumpool:4"})
    with progress.ProgressObserver(2, quiet=False) as observer:
        observer.cell_started(cell)
        observer.cell_progress(0.0)
        clock[0] += 20
        observer.cell_progress(0.1)
        assert observer._bars.tasks[1].fields["left"] == "3.0 min left"  # 20 s for a tenth
        assert capsys.readouterr().err == ""
        clock[0] += 20
        observer.cell_progress(0.5)
        observer.cell_progress(0.5)
        assert capsys.readouterr().err == "dps on sumpool:4: 50%, 40 s left\n"
        observer.cell_started(cell)
        assert observer._bars.tasks[1].fields["left"] == ""
