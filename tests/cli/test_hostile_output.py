"""Names, reasons and file contents cannot send codes to the terminal, nor formulas to a spreadsheet."""

from __future__ import annotations

import csv
import io
import json
import warnings
from pathlib import Path

import pytest
from hostile import ALL, FORMULAS, TERMINAL, has_terminal_codes
from rich.console import Console
from rich.progress import Progress

from cryobench.cli import progress
from cryobench.cli.live import Dashboard
from cryobench.record import Record
from cryobench.results.store import METRICS, Results, read_record
from cryobench.results.tables import from_cell
from cryobench.text import printable

VALID = TERMINAL.replace("\ud800", "")
MARKUP = "[bold]x[/bold][link=file:///etc]y[/link]\\"


def record(solver: str, number: int, **fields) -> Record:
    psnr = {"name": "psnr", "direction": "higher", "unit": "dB"}
    given = {"status": "ok", "reason": "", "operator": "identity", "noise": "none", "data": "demo", "seed": 0,
             "images": ["a", "b"], "values": {"psnr": [1.0, 2.0]}, "columns": [psnr]} | fields  # fmt: skip
    return Record(hash=f"{number:02d}" + "0" * 62, solver=solver, **given)


def test_stored_names_read_back_unchanged(tmp_path):
    images = [*ALL, "plain", "a\nb"]
    values = {"psnr": [-float(k) for k in range(len(images))], "-x": [float("-inf")] * len(images)}
    columns = [{"name": name, "direction": "higher", "unit": ""} for name in values]
    written = record("=x", 1, images=images, values=values, columns=columns, reason=TERMINAL, solver_info={
        "=calls": [1.0] * len(images)})  # fmt: skip
    written.images = [image.replace("\ud800", "") for image in images]
    written.reason = VALID
    folder = Results(tmp_path).write(written)
    assert read_record(folder) == written
    text = (folder / METRICS).read_text(encoding="utf-8")
    assert not has_terminal_codes(text)
    header, *rows = csv.reader(io.StringIO(text, newline=""))
    assert header == ["image", "psnr", "'-x", "solver:=calls"]
    assert [from_cell(row[0]) for row in rows] == list(map(printable, written.images))
    assert rows[1][1:3] == ["-1.0", "-inf"]
    assert not [row[0] for row in rows if row[0].strip()[:1] in "=+-@"]


def test_cells_of_earlier_versions_are_read(tmp_path):
    images = ["=x", "-y", "'=z", "a\tb", "\x1b"]
    written = record("x", 1, images=images, values={"psnr": [1.0] * 5})
    folder = Results(tmp_path).write(written)
    lines = "image,psnr\n" + "".join(f"{image},1.0\n" for image in images)
    (folder / METRICS).write_text(lines, encoding="utf-8")
    assert read_record(folder) == written


def test_a_record_with_invalid_unicode_is_skipped_with_one_line(cli):
    store = Results("runs")
    store.write(record("tv", 1))
    folder = store.write(record("pinv", 2))
    text = (folder / "record.json").read_text()
    (folder / "record.json").write_text(text.replace('"pinv"', r'"\ud800pinv"'))
    code, out, err = cli("leaderboard", "--csv", "-")
    assert code == 0
    assert [row["solver"] for row in csv.DictReader(io.StringIO(out))] == ["tv"]
    assert err.count("damaged run folder") == 1


@pytest.fixture
def runs(cli) -> Results:
    """A cell for each hostile solver, with a hostile reason or data, and a folder with a hostile name."""
    store = Results("runs")
    for number, name in enumerate([VALID, MARKUP, *FORMULAS]):
        store.write(record(name, 2 * number, data=name))
        store.write(record(name, 2 * number + 1, status="failed", reason=name, values={}, operator=name))
    (Path("runs") / f"folder {VALID}").mkdir()
    return store


@pytest.mark.parametrize("name", ["rich", "csv", "json", "md", "latex", "html"])
def test_leaderboards_and_their_notes(cli, runs, name):
    code, out, err = cli("leaderboard", "--format", name)
    assert code == 0, err
    for text in (out, err):
        assert not has_terminal_codes(text)
    if name == "json":
        assert {row["solver"] for row in json.loads(out)} == {VALID, MARKUP, *FORMULAS}
    if name == "csv":
        found = {from_cell(row["solver"]) for row in csv.DictReader(io.StringIO(out, newline=""))}
        assert found == set(map(printable, [VALID, MARKUP, *FORMULAS]))
    if name == "rich":
        assert MARKUP in out


def test_export_and_compare(cli, runs):
    for arguments in (
        ("export", "--csv", "-"),
        ("compare", "runs", "runs"),
        ("compare", "runs", "runs", "--format", "csv"),
    ):
        code, out, err = cli(*arguments)
        assert code == 0, err
        assert not has_terminal_codes(out + err)
        assert out


@pytest.mark.parametrize(
    "arguments",
    [
        ("leaderboard", TERMINAL),
        ("run", "-s", TERMINAL, "-o", "identity"),
        ("run", "-s", "pinv", "-o", TERMINAL),
        ("run", "-s", "pinv", "-o", "identity", "--data", TERMINAL),
        ("run", "--" + TERMINAL),
        ("--" + TERMINAL,),
        (TERMINAL,),
        ("show", TERMINAL),
        ("show", "dct", TERMINAL),
        ("data", "info", TERMINAL),
        ("compare", TERMINAL, "runs"),
        ("export", TERMINAL, "--csv", "-"),
        ("sweep", TERMINAL),
        ("reconstruct", TERMINAL, "--solver", "pinv", "--out", "a.mrcs"),
    ],
)
def test_errors_quote_arguments_without_codes(cli, arguments):
    code, out, err = cli(*(argument.replace("\ud800", "\udcff") for argument in arguments))
    assert code == 2
    assert "owned" in err
    assert not has_terminal_codes(out + err)


PLUGIN = f"""
import warnings
from dataclasses import dataclass
from cryobench.core import Solver

@dataclass(frozen=True)
class Loud(Solver):
    '''Loud {MARKUP!s:.12} {ascii(VALID)[1:-1]}'''
    def solve(self, problem, *, rng, progress=None):
        warnings.warn({VALID!a})
        raise RuntimeError({VALID!a})
"""


def test_reasons_warnings_and_descriptions_of_a_plugin(cli, blobs, install_plugin):
    install_plugin("cryobench-loud", {"cryobench.solvers": {"loud": "loud_module:Loud"}}, loud_module=PLUGIN)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        code, out, err = cli("run", "-s", "loud", "-o", "identity", "--data", blobs, "--images", "0")
    assert code == 1
    assert "failed: RuntimeError: " in err
    assert not has_terminal_codes(out + err)
    code, out, err = cli("show", "loud")
    assert code == 0, err
    assert "owned" in out
    assert not has_terminal_codes(out + err)


def shown(renderable) -> str:
    text = io.StringIO()
    Console(file=text, width=200).print(renderable)
    return text.getvalue()


def test_the_dashboard_and_progress_bars(monkeypatch):
    dashboard = Dashboard(3, "psnr")
    dashboard.cell_finished(record(MARKUP, 1, operator=VALID, data=MARKUP), reused=False)
    dashboard.cell_finished(record(VALID, 2, status="failed", reason=VALID + MARKUP, values={}), reused=False)
    dashboard.warn(VALID)
    text = shown(dashboard.shown())
    assert not has_terminal_codes(text)
    assert text.count(MARKUP) >= 2
    started = []
    start = Progress.start
    monkeypatch.setattr(Progress, "start", lambda bars: (started.append(bars), start(bars)))
    with progress.counted(VALID + MARKUP, 3, quiet=False) as update:
        update(1, 3)
        text = shown(started[0].get_renderable())
    assert not has_terminal_codes(text)
    assert MARKUP in text
