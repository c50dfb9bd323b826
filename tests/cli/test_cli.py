"""The command line: exit codes, one-line errors, results on stdout and everything else on stderr."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import torch

from cryobench import environment
from cryobench.cli import main
from cryobench.record import TRAILING


def python(*arguments: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, **options)


@pytest.mark.parametrize("command", ["--help", "list", "--version", "run --help", "list solvers"])
def test_light_commands_import_no_heavy_library(command):
    code = (
        f"import sys; sys.argv = ['cryobench', *{command.split()!r}]\n"
        "from cryobench.cli import main\n"
        "try: main()\n"
        "except SystemExit as stop: assert not stop.code, stop.code\n"
        "heavy = {'torch', 'pandas', 'numpy', 'scipy', 'matplotlib', 'diffusers'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr


def test_the_first_command_of_the_readme_prints_a_ranked_table(cli):
    code, out, err = cli("run", "--solver", "dct", "--operator", "sumpool:16")
    assert code == 0
    assert "sumpool:16 · noise none · demo, 4 images · seed 0 · C = 4.00" in out
    assert "pinv (floor)" in out
    assert "2 cells in runs" in err
    assert err.splitlines()[-1] == (
        "next: 6 images (--images) would give p-values; --data particles.star takes your own; "
        "`cryobench leaderboard --format html=board.html` makes a page"
    )
    assert len(list(Path("runs").iterdir())) == 2


def test_run_on_a_real_particle(cli, shared):
    code, _, _ = cli(
        "run", "--solver", "pinv", "--solver", "dct", "--operator", "sumpool:2,count=2", "--operator", "fourier:0.5",
        "--data", shared / "data" / "sample_empiar10076.pt", "--csv", "board.csv",
    )  # fmt: skip
    assert code == 0
    rows = list(csv.DictReader(io.StringIO(Path("board.csv").read_text())))
    assert len(rows) == 4
    assert ",".join(rows[0]).startswith("rank,solver,operator,noise,data,seed,n_images,compression,status,reason,psnr,")
    assert ",".join(rows[0]).endswith(",".join(TRAILING))
    assert rows[0]["psnr_lo"] == rows[0]["psnr_hi"] == ""  # one image: no interval
    floor = next(row for row in rows if row["solver"] == "pinv" and row["operator"].startswith("sumpool"))
    assert 21.5 < float(floor["psnr"]) < 22.5


def test_results_go_to_stdout_and_notes_to_stderr(cli, blobs):
    arguments = ("run", "-s", "dct", "-o", "sumpool:4", "-d", blobs, "--quiet")
    code, out, err = cli(*arguments, "--json")
    assert (code, err) == (0, "")
    assert [row["rank"] for row in json.loads(out)] == [1, 2]
    code, out, err = cli(*arguments, "--csv", "-")
    assert (code, err) == (0, "")
    assert [row["solver"] for row in csv.DictReader(io.StringIO(out))] == ["dct", "pinv"]


def test_finished_cells_are_reused_and_ranked_by_leaderboard(cli, blobs):
    arguments = ("run", "-s", "dct", "-o", "sumpool:4", "-o", "fourier:0.5", "-d", blobs)
    _, first, _ = cli(*arguments)
    _, second, err = cli(*arguments)
    assert first == second  # times included: the saved ones are shown
    assert "4 of them reused (--force runs them again)" in err
    _, _, err = cli(*arguments, "--force")
    assert "of them reused" not in err
    _, _, err = cli(*arguments, "--format", "html=board.html")
    assert err.splitlines()[-1] == "next: 6 images (--images) would give p-values"
    many = ("-s", "tikhonov", "-s", "wavelet", "-s", "tv", "--format", "html=board.html", "--out", "many")
    _, _, err = cli(*arguments, *many)  # six pairs of rows need eight images, of which there are six
    assert "next" not in err
    _, _, err = cli(*arguments, "--by", "seconds_per_image")  # not tested for any number of images
    assert err.splitlines()[-1] == "next: `cryobench leaderboard --format html=board.html` makes a page"
    code, board, _ = cli("leaderboard")
    assert code == 0
    assert "sumpool:4" in board
    assert "fourier:0.5" in board
    (Path("runs") / "foreign").mkdir()
    code, out, err = cli("leaderboard", "runs", "--by", "ssim", "--csv", "-")
    assert (code, len(out.splitlines())) == (0, 5)
    assert "skipped runs/foreign: not a run folder" in err


def test_several_seeds_noises_and_images(cli, blobs):
    code, out, _ = cli(
        "run", "-s", "pinv", "-o", "sumpool:4", "-d", blobs, "--images", "1,4", "--seed", 1, "--seed", 2,
        "-n", "none", "-n", "gaussian:rel=0.1", "--size", 16, "--csv", "-", "-m", "psnr",
    )  # fmt: skip
    rows = list(csv.DictReader(io.StringIO(out)))
    assert code == 0
    assert {(row["seed"], row["noise"]) for row in rows} == {
        (seed, noise) for seed in "12" for noise in ("none", "gaussian:rel=0.1")
    }
    assert {row["n_images"] for row in rows} == {"2"}


BROKEN = {
    "truncated.mrcs": lambda path: (
        mrcfile.write(path, np.ones((4, 8, 8), np.float32)),
        os.truncate(path, path.stat().st_size - 100),
    ),
    "empty.mrc": lambda path: path.touch(),
    "zero.npy": lambda path: np.save(path, np.zeros((2, 32, 32), np.float32)),
    "nan.npy": lambda path: np.save(path, np.full((32, 32), np.nan, np.float32)),
    "lost.star": lambda path: path.write_text("data_\nloop_\n_rlnImageName #1\n1@nowhere.mrcs\n"),
    "text.npy": lambda path: path.write_text("hello"),
    "volume.mrc": lambda path: mrcfile.write(path, np.random.default_rng(0).normal(size=(8, 8, 8)).astype(np.float32)),
}
GOOD = ("-s", "dct", "-o", "sumpool:4")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("-s", "dcd", "-o", "sumpool:4"), "no solver 'dcd'; did you mean 'dct'?"),
        (("-s", "dct", "-o", "sumpol:4"), "did you mean 'sumpool'"),
        (("-s", "dct", "-o", "sumpool:4,cuont=3"), "did you mean 'count'"),
        (("-s", "dct", "-o", "sumpool:four"), "block expects int, got 'four'"),
        (("-s", "dct", "-o", "sumpool"), "needs 'block'"),
        (("-s", "dct", "-o", "sumpool:4,,"), "key=value"),
        (("-s", "dct", "-o", "ctf@sumpool:4"), "gives 4 images per image, the outer operator requires one"),
        (("-s", "dct", "-o", "sumpool:7"), "does not divide images of 128 x 128 pixels; block sizes that do: 1, 2, 4"),
        (("-s", "dct", "-o", "fourier:0.5,mask=random_binary"), "requires a Fourier mask"),
        (("-s", "dct", "-o", "sumpool:4,mask=fourier_ring"), "requires a pixel mask"),
        (("-s", "dct", "-o", "fourier:0"), "rho must lie in (0, 1], got 0"),
        (("-o", "sumpool:4"), "--solver"),
        (("-s", "dct"), "--operator"),
        ((*GOOD, "--images", "5:3"), "5:3"),
        ((*GOOD, "--images", "0:800"), "32 images"),
        ((*GOOD, "--images", "x"), "'x'"),
        ((*GOOD, "--device", "tpu"), "--device"),
        ((*GOOD, "--dtype", "float16"), "--dtype"),
        ((*GOOD, "--batch", "0"), "--batch"),
        ((*GOOD, "--noise", "gaussian:-1"), "sigma must be zero or positive, got -1"),
        ((*GOOD, "--noise", "gaussian"), "gaussian:0.1"),
        ((*GOOD, "--metric", "pnsr"), "did you mean 'psnr'"),
        ((*GOOD, "--by", "pnsr"), "did you mean 'psnr'"),
        ((*GOOD, "--metric", "ssim", "--by", "psnr"), "--by 'psnr' is not a column of this run"),
        ((*GOOD, "--save", "panle"), "did you mean 'panel'"),
        ((*GOOD, "--out", "taken/runs"), "choose another folder with --out"),
        ((*GOOD, "--csv", "no/where.csv"), "does not exist"),
        ((*GOOD, "--data", "nowhere.mrcs"), "neither a file here nor a registered source"),
        ((*GOOD, "--data", "demmo"), "did you mean 'demo'"),
        ((*GOOD, "--size", "64"), "does not apply to the data source 'demo'"),
        ((*GOOD, "--data", "truncated.mrcs"), "truncated.mrcs"),
        ((*GOOD, "--data", "empty.mrc"), "empty"),
        ((*GOOD, "--data", "zero.npy"), "constant"),
        ((*GOOD, "--data", "nan.npy"), "image 0"),
        ((*GOOD, "--data", "lost.star"), "nowhere.mrcs"),
        ((*GOOD, "--data", "text.npy"), "text.npy"),
        ((*GOOD, "--data", "volume.mrc"), "--as-stack"),
        ((*GOOD, "--seed", "x"), "seed"),
        ((*GOOD, "--seed", "9" * 30), "--seed"),
        ((*GOOD, "--json", "--csv", "-"), "both write to stdout"),
        ((*GOOD, "--data", "./folder"), "is a folder"),
        ((*GOOD, "--data", "x" * 5000), "neither a file"),
        ((*GOOD, "--csv", "x" * 5000), "File name too long"),
        ((*GOOD, "--images", "9" * 5000), "not a selection of images"),
        ((*GOOD, "--no-such-option"), "--no-such-option"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_invalid_input_gives_one_line_and_exit_code_2(cli, arguments, expected):
    Path("taken").write_text("")
    Path("folder").mkdir()
    for name, write in BROKEN.items():
        write(Path(name).resolve())
    before = set(Path().iterdir())
    code, out, err = cli("run", *arguments)
    assert code == 2
    assert out == ""
    assert expected in err
    message = [line for line in err.splitlines() if not line.startswith(("Usage:", "Try "))]
    assert len([line for line in message if line.strip()]) == 1, err
    left = set(Path().iterdir()) - before
    assert left <= {Path("runs")}
    assert not Path("runs").exists() or not list(Path("runs").iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_an_unavailable_device_is_refused(cli):
    code, _, err = cli("run", *GOOD, "--device", "cuda")
    assert (code, err.count("\n")) == (2, 1)
    assert "no CUDA device" in err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_refused(cli, tmp_path):
    tmp_path.joinpath("locked").mkdir(mode=0o500)
    code, _, err = cli("run", *GOOD, "--out", "locked/runs")
    assert code == 2
    assert "Permission denied" in err


def test_debug_shows_the_traceback(cli, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["cryobench", "run", "-s", "dcd", "-o", "sumpool:4", "--debug"])
    from cryobench.errors import UnknownName

    with pytest.raises(UnknownName):
        main()


SOLVER = """
from dataclasses import dataclass
from typing import Annotated
from cryobench.core import Reconstruction, Solver

@dataclass(frozen=True)
class Zero(Solver):
    '''Returns a constant image.

    A second paragraph.
    '''
    level: Annotated[float, 'the intensity'] = 0.0
    def solve(self, problem, *, rng, progress=None):
        return Reconstruction(problem.operator.A_adjoint(problem.y) * 0 + self.level)

@dataclass(frozen=True)
class Late(Zero):
    def solve(self, problem, *, rng, progress=None):
        raise RuntimeError('too late')

class Plain: pass
"""


def test_plugin_solvers_are_rows_and_failures_show_their_reason(cli, install_plugin):
    install_plugin(
        "cryobench-zero",
        {"cryobench.solvers": {"zero": "zero_plugin:Zero", "late": "zero_plugin:Late"}},
        zero_plugin=SOLVER,
    )
    code, out, err = cli("run", "-s", "zero:0.1", "-s", "late", "-o", "sumpool:16", "-m", "psnr")
    assert code == 1  # one failed, the others were saved
    assert "zero:0.1" in out
    assert "RuntimeError: too late (zero_plugin.py:" in out
    assert "3 cells in runs" in err
    _, shown, _ = cli("show", "zero")
    assert "cryobench-zero 1.0" in shown
    assert "the intensity" in shown
    assert "A second paragraph." in shown


def test_invalid_plugins_give_one_line_errors_and_do_not_affect_others(cli, install_plugin):
    install_plugin(
        "cryobench-bad",
        {"cryobench.solvers": {"raising": "bad_plugin:X", "pinv": "zero_plugin:Zero", "plain": "zero_plugin:Plain"}},
        bad_plugin="raise ImportError('libmagic is missing')",
        zero_plugin=SOLVER,
    )
    for name, expected in {
        "raising": "'raising' of cryobench-bad 1.0 cannot be imported: ImportError: libmagic is missing",
        "plain": "must be a frozen dataclass",
        "pinv": "registered by ",
    }.items():
        code, _, err = cli("run", "-s", name, "-o", "sumpool:16", "--no-floor")
        assert (code, err.count("\n")) == (2, 1)
        assert expected in err
    code, _, _ = cli("run", "-s", "dct:steps=2", "-o", "sumpool:16", "--no-floor")
    assert code == 0  # the others still work
    _, listed, _ = cli("list", "solvers")
    assert "conflict: uninstall one" in listed
    code, problems, _ = cli("list", "--problems")
    assert code == 1
    assert len(problems.splitlines()) == 3


COMMAND = """
import typer
def greet(name: str = typer.Argument('you'), loud: bool = False):
    '''Say hello.'''
    typer.echo(f'hello {name}' + '!' * loud)
"""


def test_a_plugins_command_is_listed_and_imported_when_invoked(cli, install_plugin):
    install_plugin(
        "cryobench-greet",
        {"cryobench.commands": {"greet": "greet_plugin:greet", "gone": "no_module:x", "run": "no_module:x"}},
        greet_plugin=COMMAND,
    )
    _, out, _ = cli("--help")
    assert "A command of cryobench-greet." in out
    assert "greet_plugin" not in sys.modules
    assert cli("greet", "there", "--loud")[:2] == (0, "hello there!\n")
    code, _, err = cli("gone")
    assert (code, err.count("\n")) == (2, 1)
    assert "cryobench-greet cannot be imported" in err
    assert cli("run", "--help")[0] == 0  # a built-in command cannot be replaced


def test_output_of_plugins_goes_to_stderr(cli, install_plugin):
    noisy = SOLVER.replace("raise RuntimeError('too late')", "print('chatter'); return super().solve(problem, rng=rng)")
    install_plugin("cryobench-noisy", {"cryobench.solvers": {"noisy": "noisy_plugin:Late"}}, noisy_plugin=noisy)
    code, out, err = cli("run", "-s", "noisy", "-o", "sumpool:16", "--json", "--quiet")
    assert code == 0
    assert len(json.loads(out)) == 2
    assert err == "chatter\n"


def test_a_folder_with_the_name_of_a_source_does_not_hide_the_source(cli):
    Path("demo").mkdir()
    assert cli("run", "-s", "pinv", "-o", "sumpool:16", "-q")[0] == 0


def test_ascii_terminals_are_supported(tmp_path):
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    for command in (["show", "sumpool"], ["run", "-s", "pinv", "-o", "sumpool:16"]):
        done = python("-m", "cryobench", *command, env=environment, cwd=tmp_path)
        assert done.returncode == 0, done.stderr


HOOK = """
from cryobench.hooks import hookimpl
@hookimpl
def cryobench_record_added(record):
    with open('seen.txt', 'a') as file: file.write(record.solver + '\\n')
@hookimpl
def cryobench_run_finished(records):
    raise RuntimeError('no network')
"""


def test_hooks_are_called_and_cannot_stop_a_run(cli, install_plugin):
    install_plugin("cryobench-log", {"cryobench.hooks": {"log": "log_plugin", "gone": "no_module"}}, log_plugin=HOOK)
    code, out, err = cli("run", "-s", "pinv", "-o", "sumpool:16")
    assert code == 0
    assert "pinv" in out
    assert Path("seen.txt").read_text() == "pinv\n"
    assert "failed in cryobench_run_finished: RuntimeError: no network" in err
    assert "hook plugin 'gone' of cryobench-log cannot be loaded" in err


SLOW = """
import time
from dataclasses import dataclass
from cryobench.core import Reconstruction, Solver
@dataclass(frozen=True)
class Slow(Solver):
    def solve(self, problem, *, rng, progress=None):
        open('started', 'w').close()
        time.sleep(60)
"""


def test_ctrl_c_keeps_finished_cells_and_says_how_to_continue(install_plugin, tmp_path):
    install_plugin("cryobench-slow", {"cryobench.solvers": {"slow": "slow_plugin:Slow"}}, slow_plugin=SLOW)
    process = subprocess.Popen(
        [sys.executable, "-m", "cryobench", "run", "-s", "slow", "-o", "sumpool:16"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not (tmp_path / "started").exists():
        assert time.monotonic() < deadline, "the solver never started"
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "1 of 2 cells are finished and kept in runs; the same command continues from there" in err
    assert "Traceback" not in err
    assert [path.name.split("-")[3] for path in (tmp_path / "runs").iterdir()] == ["pinv"]


def test_list_show_env_and_version(cli):
    code, out, _ = cli("list")
    assert code == 0
    for name in ("sumpool", "fourier_ring", "poisson", "pinv", "measurement_mse", "demo"):
        assert name in out
    _, out, _ = cli("show", "sumpool")
    assert "required" in out
    assert "random_binary" in out
    assert "cryobench.operators.sumpool:SumPool" in out
    _, out, _ = cli("show", "diffpir")
    assert (
        "\n    x0 <- argmin_x ||A x - y||^2 + rho_t ||x - x0||^2\n    eps = " in out
    )  # formulas keep their line breaks
    assert "\nwith rho_t = " in out
    code, _, err = cli("show", "sumpol")
    assert (code, "did you mean 'sumpool'" in err) == (2, True)
    code, _, err = cli("list", "solver")
    assert (code, "did you mean 'solvers'" in err) == (2, True)
    _, out, _ = cli("env", "--json")
    facts = json.loads(out)
    assert facts["torch"] == torch.__version__.partition("+")[0]
    assert facts["cores"] >= 1
    import cryobench

    assert cli("--version")[1] == f"cryobench {cryobench.__version__}\n"


def test_env_states_what_is_missing_for_what(cli, monkeypatch):
    installed = environment.version
    versions = {"optuna": environment.NOT_INSTALLED}
    monkeypatch.setattr(environment, "version", lambda name="cryobench": versions.get(name) or installed(name))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: "nowhere")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    missing = json.loads(cli("env", "--json")[1])["missing"]
    tune = {"what": "optuna", "needed_for": "cryobench tune", "remedy": "pip install 'cryobench[tune]'"}
    assert tune in missing
    out = cli("env")[1].partition("\nmissing\n")[2]
    assert "  optuna, for cryobench tune: pip install 'cryobench[tune]'\n" in out
    assert "  weights, for the metric lpips: AlexNet's weights are not on this machine" in out
    assert "  a CUDA device, for --device cuda" in out
    assert len(out.splitlines()) == len(missing)


def test_completion_offers_registered_names():
    from cryobench.cli.options import complete

    assert complete("operators")("su") == ["sumpool"]


@pytest.mark.parametrize("name", ["run", "sweep", "tune", "train"])
def test_help_has_each_option_once_in_sections_by_purpose(cli, name):
    from typer.main import get_command

    from cryobench.cli import app, sections

    out = cli(name, "--help")[1]
    titles = re.findall(r"^\w.*:$", out, re.MULTILINE)
    table = getattr(sections, name.upper())
    assert [title for title in titles if title != "Arguments:"] == [f"{title}:" for title in (*table, sections.OTHER)]
    options = out.partition(f"\n{titles[0]}\n")[2]
    names = [name for both in re.findall(r"^  (?:(-\w), )?(--[\w-]+)", options, re.MULTILINE) for name in both]
    assert names[-1] == "--help"
    params = [param for param in get_command(app).get_command(None, name).params if not getattr(param, "hidden", False)]
    of_options = {param.name for param in params if param.param_type_name == "option"}
    named = [option for options in table.values() for option in options]
    assert len(named) == len(set(named))
    assert set(named) == of_options - {"schema"}
    for param in params:
        if param.name in named:
            assert names.count(param.opts[0]) == 1, param.name


def test_columns_are_chosen_and_a_wrong_name_is_refused_before_any_work(cli, blobs):
    arguments = ("run", "-s", "dct", "-o", "sumpool:4", "-d", blobs, "--columns")
    code, _, err = cli(*arguments, "ssum")
    assert (code, err.count("\n")) == (2, 1)
    assert "--columns 'ssum' is not a column of these results; did you mean 'ssim'?" in err
    assert not Path("runs").exists()
    _, out, _ = cli(*arguments, "ssim,nfe", "--quiet")
    assert "NFE" in out
    assert "s per" not in out
    assert "not shown" not in out
    _, out, _ = cli("leaderboard", "--wide")
    assert "measurement_mse ↓" in out
    assert "not shown" not in out
    code, _, err = cli("leaderboard", "--columns", "ssum")
    assert (code, err.count("\n")) == (2, 1)
