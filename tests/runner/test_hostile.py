"""A plugin harms its own cell alone: exceptions of any kind, and changes of global state."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import hostile_solver as hostile
import numpy as np
import psutil
import pytest
import torch

import cryobench as cb
from cryobench.cli import main
from cryobench.errors import described, one_line, reason_of
from cryobench.global_state import restored
from cryobench.hooks import Hooks, hookimpl
from cryobench.results.store import Results

WAYS = (*hostile.FAILING, *(way for way in hostile.LEAVING_TRACES if way != "closes"))  # that is pytest's stream
OPTIONS = {"operators": "sumpool:4", "images": "0:2", "metrics": ["psnr", "frc"], "floor": False}


@pytest.fixture
def plugins(install_plugin, tmp_path, monkeypatch) -> Path:
    hostile.install(install_plugin, tmp_path, monkeypatch)
    return tmp_path


def numbers(records):
    return {r.solver: (r.status, r.reason, {k: np.array(v).tobytes() for k, v in r.values.items()}) for r in records}


@pytest.fixture
def expected(plugins, blobs):
    """The results of the honest solvers without the hostile ones."""
    return numbers(cb.run([f"honest:{n}" for n in range(len(WAYS))], data=blobs, **OPTIONS))


def test_a_hostile_solver_affects_its_own_cell_alone(expected, blobs):
    solvers = hostile.interleaved(WAYS)
    records = cb.run(solvers, data=blobs, **OPTIONS)
    got = numbers(records)
    wrong = {s: got[s][:2] for s in expected if got[s] != expected[s]}
    assert not wrong
    assert all(status == "ok" for status, *_ in expected.values())
    for way, reason in hostile.FAILING.items():
        status, shown, _ = got[f"hostile:{way}"]
        assert status == "failed"
        assert shown.startswith(reason)
        assert "\n" not in shown
        assert len(shown) < 2100
    for way in WAYS[len(hostile.FAILING) :]:
        assert got[f"hostile:{way}"][0] in ("ok", "failed")


def test_what_a_hostile_solver_leaves_in_its_record_can_be_read(plugins, blobs):
    """Names that are not valid Unicode, and times of a clock that the solver replaced."""
    image = plugins / os.fsdecode(b"\xff.npy")
    image.write_bytes(blobs.read_bytes())
    records = cb.run(["hostile:surrogate_name", "hostile:surrogate", "hostile:clock", "hostile:million"], data=image,
                     out=plugins / "runs", **OPTIONS)  # fmt: skip
    stored = Results(plugins / "runs").read_all(pytest.fail)
    assert numbers(stored) == numbers(records)
    assert {record.data for record in stored} == {"\\udcff.npy"}
    assert [list(record.solver_info) for record in stored if record.solver == "hostile:surrogate_name"] == [
        ["a\\udcff"]
    ]
    assert all(seconds >= 0 for record in stored for seconds in record.timing.values())
    for path in (plugins / "runs").glob("*/*.[jc]s*"):
        path.read_bytes().decode()


def run_command(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).parent / "cryobench"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def arguments(solvers, blobs) -> list[str]:
    given = [part for solver in solvers for part in ("--solver", solver)]
    return ["run", *given, "-o", "sumpool:4", "-d", str(blobs), "--images", "0:2", "-m", "psnr", "--no-floor", "-q"]


def test_a_run_whose_process_ends_early_says_what_was_lost(plugins, blobs):
    made = run_command(*arguments(["honest:1", "hostile:closes", "hostile:exit_0", "honest:2"], blobs), "--json")
    assert (made.returncode, made.stdout) == (1, "")
    assert made.stderr.splitlines()[-1] == (
        "error: the process was ended by itself with exit code 0 during hostile:exit_0 on sumpool:4; 2 of 4 cells are "
        "finished and kept in runs; the same command continues from there; leave out the plugin, or use `cryobench "
        "sweep --executor processes`, which then loses only its cell"
    )
    assert [record.solver for record in Results("runs").read_all(pytest.fail)] == [
        "honest:1",
        "hostile:closes",
    ]


@pytest.mark.parametrize(
    ("command", "code", "error"),
    [
        ("sys.exit(2)", 2, ""),
        ("None", 0, ""),
        ("os._exit(0)", 1, "error: the process was ended by itself with exit code 0 during a cell; 1 kept; leave out"),
        ("os.abort()", 1, "error: the process was killed by SIGABRT during a cell; 1 kept; leave out the plugin"),
        ("os.kill(os.getpid(), 9)", 1, "error: the process was killed by SIGKILL during a cell"),
        ("os.kill(os.getppid(), 15) or time.sleep(60)", -15, ""),
        ("os.kill(os.getppid(), 2) or time.sleep(60)", 1, "Traceback"),
        ("os.kill(os.getppid(), 9) or time.sleep(60)", -9, ""),
        ("threading.Thread(target=time.sleep, args=(60,)).start()", 0, ""),
    ],
)
def test_a_watched_command(command, code, error):
    """The exit code of a command, and the message where its process ends early. The child process never stays."""
    text = (
        "import os, sys, threading, time\n"
        "from cryobench.cli import watch\n"
        "watch.THREADS_END = 0.1\n"
        "def command():\n"
        "    watch.note_cell('a cell'), watch.note_kept('1 kept'), print(os.getpid(), flush=True)\n"
        f"    {command}\n"
        "watch.run_watched(command)\n"
    )
    made = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=30)
    assert made.returncode == code
    assert made.stderr.startswith(error)
    assert bool(made.stderr) == bool(error)
    deadline = time.monotonic() + 10
    while psutil.pid_exists(int(made.stdout)):
        assert time.monotonic() < deadline, "the child process still runs"
        time.sleep(0.01)


def test_what_plugins_print_does_not_reach_the_results(plugins, blobs, monkeypatch, capfd):
    monkeypatch.setattr(sys, "argv", ["cryobench", *arguments(["honest:1", "hostile:prints"], blobs), "--json"])
    with pytest.raises(SystemExit, match="0"):
        main()
    out, err = capfd.readouterr()
    assert {row["solver"] for row in json.loads(out)} == {"honest:1", "hostile:prints"}
    for text in ("imported", "honest", "from Python", "past the redirection", "to the descriptor", "from C"):
        assert text in err


def test_reconstruct_reports_a_solver_that_fails_in_one_line(plugins, blobs, cli, monkeypatch):
    assert cli("measure", "-o", "sumpool:4", "-d", blobs, "--out", "y.npz")[0] == 0
    for way, reason in {"base": "Base", "unreadable": "Unreadable: its message cannot be read, RuntimeError"}.items():
        code, _, err = cli("reconstruct", "y.npz", "-s", f"hostile:{way}", "--out", "x.mrcs", "-q")
        assert (code, err) == (2, f"error: the solver failed: {reason}\n")
    assert not list(plugins.glob("x.*"))
    assert cli("reconstruct", "y.npz", "-s", "hostile:chdir", "--out", "x.mrcs", "-q")[0] == 0
    assert (plugins / "x.mrcs").exists()


def test_a_hook_changes_no_state(tmp_path):
    class Hook:
        @hookimpl
        def cryobench_run_started(self, cells, options):
            os.chdir("/")
            torch.set_default_dtype(torch.float64)
            raise GeneratorExit

    reports: list[str] = []
    before = Path.cwd()
    Hooks(reports.append).register(Hook(), "hook").call("cryobench_run_started", cells=1, options={})
    assert reports == ["hook plugin 'hook' failed in cryobench_run_started: GeneratorExit"]
    assert (Path.cwd(), torch.get_default_dtype()) == (before, torch.float32)


def test_a_solver_that_forks_makes_one_run(plugins, blobs):
    records = cb.run(["hostile:forks", "honest:1"], data=blobs, out=plugins / "runs", **OPTIONS)
    assert [record.status for record in records] == ["ok", "ok"]
    (child,) = (plugins / "forked").read_text().split()  # it ran, and is gone
    with pytest.raises(ProcessLookupError):
        os.kill(int(child), 0)


def test_state_that_changes_is_restored():
    """The states that honest solvers do not depend on."""
    before = os.umask(0o022), Path.cwd(), torch.get_num_threads(), np.get_printoptions(), sys.getrecursionlimit()
    with restored():
        os.umask(0)
        os.chdir("/")
        torch.set_num_threads(3)
        np.set_printoptions(precision=1)
        sys.setrecursionlimit(2000)
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        torch.set_deterministic_debug_mode(2)
    after = os.umask(before[0]), Path.cwd(), torch.get_num_threads(), np.get_printoptions(), sys.getrecursionlimit()
    assert after == (0o022, *before[1:])
    assert torch.backends.cuda.matmul.fp32_precision == "none"
    assert not torch.are_deterministic_algorithms_enabled()


def test_messages_of_exceptions_are_valid_lines():
    class Odd(Exception):
        def __str__(self):
            return text

    class Text(str):
        def split(self, *_):
            raise RuntimeError

    lines = {"a\n b": "a b", "a\udcff": "a\\udcff", Text("ab"): "ab", "": "Odd"}
    for text, line in lines.items():  # noqa: B007 - `Odd` returns it
        assert reason_of(Odd()) == line
    text = 7
    assert described(Odd()) == "Odd: its message cannot be read, TypeError"
    assert one_line("a" * 10**6) == "a" * 1000 + "... (1000000 characters) ..." + "a" * 1000
