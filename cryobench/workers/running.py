"""Runs a job in a worker process."""

from __future__ import annotations

import contextlib
import os
import platform
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cryobench.errors import ExecutorError
from cryobench.workers.guard import guard
from cryobench.workers.job import Job

_one_at_a_time = threading.Lock()
"""torch's default dtype and random state are global to the process, so jobs must not run in parallel threads."""


def run(job: Job, here: Callable[[Any], Any] | None = None) -> Any:
    """Run a job in this process, or in a child process if the job has limits. Raises `Stopped` beyond a limit.

    here: called with the job in place of its `run` if it runs in this process.
    """
    with _one_at_a_time:
        if job.limits:
            return guard().run(job, prepare, run)
        _set_threads(job)
        with _within(job.folder):
            return job.run() if here is None else here(job)


def prepare(job: Job) -> None:
    """Prepare a job in this process."""
    _set_threads(job)
    with _within(job.folder):
        job.prepare()


def _set_threads(job: Job) -> None:
    if job.threads is not None:
        import torch

        torch.set_num_threads(job.threads)


def _within(folder: str) -> contextlib.AbstractContextManager[None]:
    """Change to a folder, for relative paths."""
    if os.path.realpath(folder) == os.path.realpath(os.curdir):
        return contextlib.nullcontext()
    if not Path(folder).is_dir():
        raise ExecutorError(f"the worker on {platform.node()} has no folder {folder}; workers must share it")
    return contextlib.chdir(folder)
