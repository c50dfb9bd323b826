"""Outputs that cannot be written: one line, exit code 2, and the table is printed all the same."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import toys

from cryobench.cli import main
from cryobench.cli.output import FORMATS
from cryobench.record import Record
from cryobench.results.store import Results

FULL = Path("/dev/full")
pytestmark = pytest.mark.skipif(not FULL.is_char_device(), reason="no /dev/full on this system")
FAILED = "No space left on device; free space or choose another path\n"


@pytest.fixture
def runs(cli) -> Results:
    """Two cells in `runs` of the current folder."""
    store = Results("runs")
    for solver in ("pinv", "tv"):
        store.write(
            Record(hash=solver + "0" * 60, status="ok", reason="", solver=solver, operator="identity", noise="none",
                   data="demo", seed=0, images=["a", "b"], values={"psnr": [1.0, 2.0]},
                   columns=[{"name": "psnr", "direction": "higher", "unit": "dB"}],
                   environment={"created": "2026-01-01T00:00:00"})
        )  # fmt: skip
    return store


@pytest.fixture
def full(tmp_path):
    """A function that makes a link to the full device with a name in the current folder."""

    def link(name: str) -> str:
        (tmp_path / name).symlink_to(FULL)
        return name

    return link


@pytest.mark.parametrize("name", FORMATS)
def test_a_leaderboard_is_printed_although_a_file_cannot_be_written(cli, runs, name):
    code, out, err = cli("leaderboard", "--format", f"{name}=/dev/full", "--csv", "board.csv")
    assert (code, err) == (2, f"error: cannot write /dev/full: {FAILED}")
    assert out == cli("leaderboard")[1]
    assert "tv" in out
    assert Path("board.csv").read_text() == cli("leaderboard", "--csv", "-")[1]


def test_every_file_that_cannot_be_written_is_named(cli, runs, full):
    code, _, err = cli("leaderboard", "--csv", full("a.csv"), "--format", f"md={full('b.md')}")
    assert code == 2
    assert err.count("\n") == 1
    assert "cannot write a.csv: No space" in err
    assert "cannot write b.md: No space" in err


@pytest.mark.parametrize("option", ["--csv", "--parquet", "--benchopt"])
def test_export(cli, runs, full, option):
    name = full("table.parquet")
    assert cli("export", option, name) == (2, "", f"error: cannot write {name}: {FAILED}")


def test_run_keeps_the_cells_and_prints_the_table(cli, blobs):
    code, out, err = cli("run", "-s", "pinv", "-o", "identity", "--data", blobs, "--images", "0", "--csv", "/dev/full")
    assert code == 2
    assert "pinv" in out
    assert err.endswith(f"error: cannot write /dev/full: {FAILED}")
    assert len(list(Path("runs").glob("*/record.json"))) == 1


def test_sweep_writes_the_other_published_file(cli, blobs, full):
    Path("s.yaml").write_text(f"data: {blobs}\nimages: '0'\nsolvers: pinv\noperators: identity\nmetrics: psnr\n")
    code, out, err = cli("sweep", "s.yaml", "--publish", ".", "--csv", full("mine.csv"))
    assert code == 2
    assert "pinv" in out
    assert f"error: cannot write mine.csv: {FAILED}" in err
    assert Path("s.csv").read_text().startswith("rank,solver")
    assert Path("s.md").read_text().startswith("# s\n")
    Path("s.md").unlink()
    code, out, err = cli("sweep", "s.yaml", "--publish", ".", full("s.md") and "--quiet")
    assert code == 2
    assert "pinv" in out
    assert err == f"error: cannot write s.md: {FAILED}"


def test_tune_prints_the_table_and_saves_the_preset(cli, tmp_path, monkeypatch, install_plugin):
    pytest.importorskip("optuna")
    monkeypatch.setenv("SPIED", str(tmp_path / "spied"))
    toys.install(install_plugin)
    code, out, err = cli("tune", "-s", "toy", "-o", "identity", "-d", "spy", "--images", "4:5", "--by", "mse",
                         "--preset", "p", "--trials", "1", "--csv", "/dev/full", "--quiet")  # fmt: skip
    assert (code, err) == (2, f"error: cannot write /dev/full: {FAILED}")
    assert "mse on the validation images" in out
    assert Path("presets/p.yaml").exists()


def test_data_measurements_and_figures(cli, blobs, full):
    out = full("y.npz")
    code, _, err = cli("measure", "-o", "identity", "--data", blobs, "--out", out, "--force")
    assert (code, err) == (2, "error: cannot write y.npz: No space left on device; choose another path\n")
    code, _, err = cli("data", "info", blobs, "--sheet", full("sheet.png"))
    assert (code, err) == (2, f"error: cannot write sheet.png: {FAILED}")
    code, _, err = cli("data", "convert", blobs, full("a.mrcs"), "--force")
    assert (code, err) == (
        2, "error: cannot write a.mrcs and a.star: No space left on device; choose another place\n"
    )  # fmt: skip
    assert not Path("a.star").exists()


@pytest.mark.parametrize("command", [("leaderboard",), ("leaderboard", "--json"), ("export", "--csv", "-"), ("list",)])
def test_stdout_on_a_full_disk(cli, runs, monkeypatch, capsys, command):
    with FULL.open("w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        monkeypatch.setattr(sys, "argv", ["cryobench", *command])
        with pytest.raises(SystemExit) as stop:
            main()
        monkeypatch.undo()
    assert stop.value.code == 2
    assert capsys.readouterr().err == (
        "error: cannot write the output: No space left on device; free space or write elsewhere\n"
    )


@pytest.mark.parametrize("target", [">/dev/full", "| true"])
def test_nothing_follows_the_message_at_exit(tmp_path, target):
    command = f"'{sys.executable}' -c 'from cryobench.cli import main; main()' list {target}; exit ${{PIPESTATUS[0]}}"
    ended = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)
    if target == "| true":
        assert ended.returncode in (0, 1)  # 0: all was written before the pipe was closed
        assert ended.stderr == ""
    else:
        assert ended.returncode == 2
        assert ended.stderr.startswith("error: cannot write the output: No space left")
        assert ended.stderr.count("\n") == 1
