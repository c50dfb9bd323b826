"""All executors give the same results, run each cell once and lose none."""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import BrokenExecutor, Future
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from sweeping import Listener, numbers, runs, swept

from cryobench.errors import ExecutorError
from cryobench.results.store import Results, read_record
from cryobench.sweep.worker import CellJob
from cryobench.workers.executors import CONNECT_SECONDS, Dask, Processes, check_reachable, parse_executor
from cryobench.workers.job import Limits

pytestmark = pytest.mark.slow

SIXTY = {
    "solvers": ["pinv", "tikhonov", "dct:steps=20", "draws:1"],
    "operators": ["sumpool:2", "sumpool:4", "sumpool:8", "fourier:0.5", "identity"],
    "noises": ["gaussian:rel=0.05"],
    "seeds": (0, 1, 2),
}
DASK = str(Path(sys.executable).parent / "dask")


def by_one_process(strange, blobs, tmp_path):
    records = swept(tmp_path / "alone", data=[str(blobs)], **SIXTY)
    assert len(records) == 60
    assert all(record.status == "ok" for record in records)
    (strange / "log").unlink()
    return numbers(records)


@pytest.mark.parametrize("executor", ["processes:2", "dask:2"])
def test_sixty_cells_on_two_workers_equal_those_of_one_process(strange, blobs, tmp_path, executor):
    listener = Listener()
    records = swept(tmp_path / "out", executor, listener=listener, data=[str(blobs)], **SIXTY)
    assert set(runs(strange).values()) == {15}  # draws:1, once per problem
    assert numbers(records) == by_one_process(strange, blobs, tmp_path)
    assert numbers(Results(tmp_path / "out").read_all(pytest.fail)) == numbers(records)
    assert listener.warnings == []
    busy = {name for name, seconds in listener.seconds.items() if seconds > 0}
    assert {"reading", "setup", "operators", "solver", "metrics", "writing", "idle"} <= busy
    again = Listener()
    assert numbers(swept(tmp_path / "out", executor, listener=again, data=[str(blobs)], **SIXTY)) == numbers(records)
    assert (again.reused, runs(strange)) == (60, {})


@pytest.mark.parametrize("executor", ["processes:2", "dask:2"])
def test_a_worker_that_dies_loses_only_its_cell_which_is_run_again(strange, blobs, tmp_path, executor):
    listener = Listener()
    solvers = ["draws:1", "dies:1", "draws:2", "dies:2", "deadly", "draws:3"]
    records = swept(tmp_path / "out", executor, listener=listener, data=[str(blobs)], solvers=solvers)
    results = {record.solver: (record.status, record.reason) for record in records}
    assert results.pop("deadly") == ("failed", "3 workers died while running it: out of memory, or a crash")
    assert set(results.values()) == {("ok", "")}
    assert runs(strange) == {"draws 1": 1, "draws 2": 1, "draws 3": 1, "dies 1": 2, "dies 2": 2, "deadly 0": 3}
    deaths = [text for text in listener.warnings if text.endswith("its worker died; running it again")]
    assert sorted(text.partition(" on ")[0] for text in deaths) == ["deadly", "deadly", "dies:1", "dies:2"]
    stored = Results(tmp_path / "out").read_all(pytest.fail)
    assert {record.solver: record.status for record in stored} == {r.solver: r.status for r in records}


def test_a_worker_that_died_while_idle_is_replaced():
    with Processes(1, [""]) as workers:
        job = CellJob(folder="/nowhere", request="{}", key="none", results="results")
        dead = workers.submit(0, job)
        assert isinstance(
            dead.exception(timeout=60), ExecutorError
        )  # the worker ran the job and did not find the folder
        child = workers._children[0]
        child.process.kill()
        until(lambda: child.executor._broken)
        assert isinstance(workers.submit(0, job).exception(timeout=60), ExecutorError)
        assert workers._children[0].started.result() != child.started.result()


def test_workers_that_do_not_start_end_the_sweep(strange, blobs, tmp_path, monkeypatch):
    monkeypatch.setattr("multiprocessing.spawn._python_exe", b"/bin/false")
    with pytest.raises(ExecutorError, match="a worker process ended while starting"):
        swept(tmp_path / "out", "processes:1", data=[str(blobs)], solvers=["draws:1"])
    assert runs(strange) == {}


@pytest.mark.parametrize("executor", ["local", "processes:1", "dask:1"])
def test_only_the_cell_beyond_a_limit_is_stopped(strange, blobs, tmp_path, executor):
    solvers = ["draws:1", "sleeps:600", "eats:3000", "draws:2"]
    records = swept(
        tmp_path / "out", executor, data=[str(blobs)], solvers=solvers, options={"limits": Limits(15, 2500)}
    )
    results = {record.solver: (record.status, record.reason) for record in records}
    assert results["draws:1"] == results["draws:2"] == ("ok", "")
    assert results["sleeps:600"] == ("failed", "stopped after 15 s, the limit (--time-limit)")
    status, reason = results["eats:3000"]
    assert status == "failed"
    assert reason.startswith("stopped at ")
    assert reason.endswith(" MiB of memory; the limit is 2500 (--memory-limit)")
    assert runs(strange) == {"draws 1": 1, "draws 2": 1, "sleeps 600": 1, "eats 3000": 1}


@contextmanager
def started(*command: str, **environment: str):
    process = subprocess.Popen(command, env=os.environ | environment, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL, start_new_session=True)  # fmt: skip
    try:
        yield process
    finally:
        for child in [*psutil.Process(process.pid).children(recursive=True)] if process.poll() is None else []:
            child.kill()
        process.kill()
        process.wait()


@contextmanager
def dask_cluster(folder: Path, workers: int):
    """A scheduler and workers, each in its own process. Yields the address and process of the scheduler."""
    address = folder / "scheduler.json"
    with started(
        DASK, "scheduler", "--port", "0", "--dashboard-address", ":0", "--scheduler-file", str(address)
    ) as scheduler:
        until(address.exists)
        found = []
        try:
            for _ in range(workers):
                found.append(subprocess.Popen(
                    [DASK, "worker", "--scheduler-file", str(address), "--nthreads", "1", "--no-nanny",
                     "--no-dashboard", "--local-directory", str(folder)],
                    env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                ))  # fmt: skip
            yield json.loads(address.read_text())["address"].replace("tcp", "dask"), scheduler
        finally:
            for worker in found:
                worker.kill()
                worker.wait()


def until(condition, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.05)


def test_a_dask_worker_and_then_the_scheduler_are_killed_and_no_finished_cell_is_lost(strange, blobs, tmp_path):
    """The sweep runs in its own process, as for users."""
    suite = tmp_path / "suite.yaml"
    solvers = [f"draws:{number}" for number in range(6)] + ["waits:1", "waits:2"] + ["draws:6", "draws:7"]
    suite.write_text(f"data: {blobs}\nimages: '0:2'\nmetrics: psnr\nsolvers: {solvers}\noperators: sumpool:4\n")
    command = [sys.executable, "-m", "cryobench", "sweep", str(suite), "--out", str(tmp_path / "out")]
    with dask_cluster(tmp_path, 2) as (address, scheduler):
        check_reachable(parse_executor(address))
        sweep = subprocess.Popen([*command, "-e", address], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        until(lambda: len(list(strange.glob("waits *"))) == 2)  # each worker runs one of the two
        killed = next(strange.glob("waits 1 *"))
        os.kill(int(killed.name.split()[2]), signal.SIGKILL)
        (strange / "go 2").touch()
        until(lambda: runs(strange)["waits 1"] == 2)  # the other worker has taken over
        scheduler.send_signal(signal.SIGKILL)
        _, errors = sweep.communicate(timeout=60)
        assert sweep.returncode == 1
        assert "the dask scheduler is gone" in errors
        assert "the same command continues from there" in errors
    finished = Results(tmp_path / "out").read_all(pytest.fail)
    assert {"pinv", "draws", *solvers[1:6], "waits:2"} <= {record.solver for record in finished}
    assert {record.status for record in finished} == {"ok"}
    before = runs(strange)
    (strange / "go 1").touch()
    again = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert again.returncode == 0, again.stderr
    assert len(Results(tmp_path / "out").read_all(pytest.fail)) == len(solvers) + 1
    for record in finished:
        name, _, number = record.solver.partition(":")
        assert runs(strange)[f"{name} {number or 0}"] == before[f"{name} {number or 0}"]


def test_the_job_of_a_lost_dask_worker_fails_once(caplog):
    class Client:
        status, found = "running", {"a": None}

        def scheduler_info(self):
            return {"workers": self.found}

        def get_executor(self, **options):
            return SimpleNamespace(submit=lambda run, job: Future())

    client = Client()
    scheduler = Dask(client, ExitStack())
    future = scheduler.submit("a", CellJob.__new__(CellJob))
    client.found = {}
    assert scheduler.names() == []
    assert isinstance(future.exception(), BrokenExecutor)
    assert caplog.records == []


def test_a_missing_scheduler_is_reported_at_once():
    with pytest.raises(ExecutorError, match=r"no dask scheduler answers at tcp://127.0.0.1:9: .*; start one with"):
        check_reachable(parse_executor("dask://127.0.0.1:9"))
    with pytest.raises(ExecutorError, match="no dask scheduler answers"):
        check_reachable(parse_executor("dask://nonsense"))
    assert CONNECT_SECONDS < 10


def test_a_server_that_is_not_a_scheduler_is_reported(monkeypatch):
    monkeypatch.setattr("cryobench.workers.executors.CONNECT_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        where = f"dask://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(ExecutorError, match=r"no dask scheduler answers at tcp.*: timed out; start one"):
            check_reachable(parse_executor(where))


SBATCH = """#!{python}
import subprocess, sys
script = open(sys.argv[-1]).read()  # the file is removed when this program ends
open({log!r}, "a").write(script)
subprocess.Popen(["bash", "-c", script], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
print("Submitted batch job 7")
"""


SLURM = "jobs: 2\nqueue: cpu\ncores: 1\nprocesses: 1\nmemory: 4GB\nwalltime: '00:05:00'\ninterface: lo\n"


def slurm_commands(tmp_path, monkeypatch, **programs: str) -> Path:
    """Write the programs of a batch system and put them first in PATH. Returns the file of a cluster."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, text in programs.items():
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}/bin")
    cluster = tmp_path / "cluster.yaml"
    cluster.write_text(SLURM)
    return cluster


def test_slurm_jobs_run_cells(strange, blobs, tmp_path, monkeypatch):
    """With a batch system that runs jobs at once on this machine."""
    sbatch = SBATCH.format(python=sys.executable, log=str(tmp_path / "jobs"))
    cluster = slurm_commands(tmp_path, monkeypatch, sbatch=sbatch, scancel="#!/bin/sh\n")
    records = swept(tmp_path / "out", f"slurm:{cluster}", data=[str(blobs)], solvers=["draws:1", "draws:2"])
    assert [record.status for record in records] == ["ok", "ok"]
    assert "#SBATCH -p cpu" in (tmp_path / "jobs").read_text()


def test_an_interrupt_cancels_slurm_jobs_that_wait(strange, blobs, tmp_path, monkeypatch):
    log = tmp_path / "log"
    log.write_text("")
    cluster = slurm_commands(
        tmp_path, monkeypatch,
        sbatch=f"#!/bin/sh\necho submit >> {log}\necho Submitted batch job 7\n",
        scancel=f"#!/bin/sh\necho cancel $* >> {log}\n",
    )  # fmt: skip
    suite = tmp_path / "suite.yaml"
    suite.write_text(f"data: {blobs}\nimages: '0:1'\nmetrics: psnr\nsolvers: draws:1\noperators: sumpool:4\n")
    command = [sys.executable, "-m", "cryobench", "sweep", suite, "--out", tmp_path / "out", "-e", f"slurm:{cluster}"]
    sweep = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until(lambda: log.read_text() == 2 * "submit\n")
    time.sleep(2)  # until the sweep has read the numbers of its jobs
    sweep.send_signal(signal.SIGINT)
    _, errors = sweep.communicate(timeout=60)
    assert sweep.returncode == 130, errors
    assert "stopped: 0 of 2 cells are finished and kept" in errors
    assert "Traceback" not in errors
    assert log.read_text() == 2 * "submit\n" + 2 * "cancel 7\n"


@pytest.mark.parametrize(
    ("sbatch", "message"),
    [("echo 'sbatch: error: invalid partition' >&2; exit 1", "invalid partition"), ("", "sbatch"), ("exit", "job id")],
)
def test_jobs_that_are_not_submitted_end_the_sweep(strange, blobs, tmp_path, monkeypatch, caplog, sbatch, message):
    programs = {"sbatch": f"#!/bin/sh\n{sbatch}\n"} if sbatch else {}
    cluster = slurm_commands(tmp_path, monkeypatch, **programs)
    with pytest.raises(ExecutorError, match=message) as error:
        swept(tmp_path / "out", f"slurm:{cluster}", data=[str(blobs)], solvers=["draws:1"])
    assert "\n" not in str(error.value)
    gc.collect()  # asyncio logs an error that nobody asked for when its task is freed
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cores: 1", "needs `jobs`"),
        ("- 1", "needs `jobs`"),
        ("jobs: two", "needs `jobs`"),
        ("jobs: 1\n  x: [", "cannot be read"),
        ("jobs: \xff", "cannot be read"),
        ("jobs: 1\nwalltime: 2024-13-01", "cannot be read"),
        ("jobs: 1\nnonsense: 2\ncores: 1\nmemory: 1GB", "nonsense"),
        ("jobs: 1", "cores"),
    ],
)
def test_an_invalid_slurm_file_gives_a_one_line_error(strange, blobs, tmp_path, text, message):
    cluster = tmp_path / "cluster.yaml"
    cluster.write_text(text, encoding="latin-1")
    with pytest.raises(ExecutorError, match=message) as error:
        swept(tmp_path / "out", f"slurm:{cluster}", data=[str(blobs)], solvers=["draws:1"])
    assert "\n" not in str(error.value)


def test_concurrent_sweeps_share_a_results_folder(strange, blobs, tmp_path):
    suite = tmp_path / "suite.yaml"
    solvers = [f"draws:{number}" for number in range(20)]
    suite.write_text(f"data: {blobs}\nimages: '0:2'\nmetrics: psnr\nsolvers: {solvers}\noperators: sumpool:4\n")
    command = [sys.executable, "-m", "cryobench", "sweep", str(suite), "--out", str(tmp_path / "out"), "--json"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    records = Results(tmp_path / "out").read_all(pytest.fail)
    assert len({record.hash for record in records}) == len(records) == 21
    assert not list((tmp_path / "out").glob(".partial-*")) + list((tmp_path / "out").glob(".replaced-*"))


def test_processes_end_with_the_sweep_that_started_them(strange, blobs, tmp_path):
    suite = tmp_path / "suite.yaml"
    suite.write_text(
        f"data: {blobs}\nimages: '0:1'\nmetrics: psnr\nsolvers: [waits:1, waits:2]\noperators: sumpool:4\n"
    )
    command = [sys.executable, "-m", "cryobench", "sweep", str(suite), "--out", str(tmp_path / "out"),
               "-e", "processes:2"]  # fmt: skip
    for signal_, code in ((signal.SIGINT, 130), (signal.SIGKILL, -9)):
        sweep = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        until(lambda: len(list(strange.glob("waits *"))) == 2)
        children = [psutil.Process(int(path.name.split()[2])) for path in strange.glob("waits *")]
        sweep.send_signal(signal_)
        _, errors = sweep.communicate(timeout=30)
        assert sweep.returncode == code, errors
        if signal_ is signal.SIGINT:
            assert "stopped: 1 of 3 cells are finished and kept" in errors
            assert "Traceback" not in errors
        _, left = psutil.wait_procs(children, timeout=20)
        assert not left
        for path in strange.glob("waits *"):
            path.unlink()
    assert [read_record(path.parent).solver for path in (tmp_path / "out").glob("*/record.json")] == ["pinv"]


def test_ctrl_c_while_workers_start_ends_the_sweep_at_once(strange, blobs, tmp_path):
    """A terminal sends it to all processes of the sweep."""
    suite = tmp_path / "suite.yaml"
    suite.write_text(f"data: {blobs}\nimages: '0:1'\nmetrics: psnr\nsolvers: [waits:1]\noperators: sumpool:4\n")
    command = [sys.executable, "-m", "cryobench", "sweep", str(suite), "--out", str(tmp_path / "out"),
               "-e", "processes:2"]  # fmt: skip
    sweep = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    until(lambda: len(starting(sweep.pid)) == 2)
    os.killpg(sweep.pid, signal.SIGINT)
    _, errors = sweep.communicate(timeout=60)
    assert sweep.returncode == 130, errors
    # and no line of a worker, nor one on what is left after waiting in vain for a worker that goes on
    assert errors.strip() == f"stopped: 0 of 2 cells are finished and kept in {tmp_path / 'out'}; the same command " \
                             "continues from there"  # fmt: skip


def starting(pid: int) -> list[psutil.Process]:
    """The workers of a sweep."""
    found = []
    for child in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.Error):  # it just ended
            if any("spawn_main" in word for word in child.cmdline()):
                found.append(child)
    return found
