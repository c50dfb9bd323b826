"""Runs the chunks of a task on workers."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from cryobench.errors import CryobenchError, ExecutorError, PluginError, described
from cryobench.measuring.tasks import Work
from cryobench.workers.executors import ExecutorSpec, workers
from cryobench.workers.job import Job, Limits, Stopped
from cryobench.workers.pool import DEATHS, Failure, Pool
from cryobench.workers.running import run as run_job


class Task(Protocol):
    """Work as plain values, which are hashable and can be sent to a worker."""

    def open(self) -> Work:
        """Open the task. Raises a `CryobenchError` for an invalid request."""
        ...


class ChunkObserver:
    """Callbacks of `run_chunks`. Override any of them."""

    def done(self, images: float) -> None:
        """So many images are done, those of earlier runs included; a fraction of an image in the midst of a chunk."""

    def started(self, chunk: int, worker: str) -> None:
        """A worker begins a chunk."""

    def finished(self, chunk: int) -> None:
        """A chunk is on disk."""

    def warn(self, message: str) -> None:
        """Something that the user should know."""


@dataclass(frozen=True)
class Where:
    """Where chunks run. device: of the workers. threads: of torch in each. shard: K of N, from 1, or None for all."""

    executor: ExecutorSpec = ExecutorSpec("local")
    device: str = "cpu"
    threads: int | None = None
    limits: Limits = Limits()
    shard: tuple[int, int] | None = None


@dataclass(frozen=True, kw_only=True)
class ChunkJob(Job):
    """One chunk of a task."""

    task: Task
    chunk: int

    def prepare(self) -> None:
        _opened(self.task)

    def run(self) -> None:
        _opened(self.task).run(self.chunk, lambda fraction: None)


@lru_cache(maxsize=1)
def _opened(task: Task) -> Work:
    """The open task of this process."""
    return task.open()


class _Queue:
    """Chunks in order."""

    def __init__(self, chunks: Iterable[int]):
        self._waiting = deque(chunks)

    def __len__(self) -> int:
        return len(self._waiting)

    def take(self, worker: Hashable) -> int | None:
        return self._waiting.popleft() if self._waiting else None

    def put_back(self, chunk: int) -> None:
        self._waiting.appendleft(chunk)


def run_chunks(task: Task, work: Work, where: Where, observer: ChunkObserver) -> None:
    """Do the chunks of a task that are not done. work: the open task.

    Finished chunks are on disk when an exception is raised: a `CryobenchError` of a chunk; `ExecutorError` for a chunk
    that exceeds the limits or kills `DEATHS` workers.
    """
    todo = work.todo()
    if where.shard is not None:
        part, of = where.shard
        own = range(len(work.parts) * (part - 1) // of, len(work.parts) * part // of)
        todo = [chunk for chunk in todo if chunk in own]
    if not todo:
        return
    finished = work.finished

    def here(job: ChunkJob) -> None:
        work.run(job.chunk, lambda fraction: observer.done(finished + fraction * work.size(job.chunk)))

    def job(chunk: int) -> ChunkJob:
        return ChunkJob(folder=str(Path.cwd()), threads=found.threads, limits=where.limits, task=task, chunk=chunk)

    observer.done(finished)
    with workers(where.executor, device=where.device, threads=where.threads,
                 run_here=lambda job: run_job(job, here)) as found:  # fmt: skip
        pool = Pool(found, job, lambda chunk: f"chunk {chunk}", observer.warn)
        for chunk, outcome in pool.run(_Queue(todo), lambda chunk, worker: observer.started(chunk, str(worker))):
            if isinstance(outcome, Failure):
                raise _error(chunk, outcome)
            finished += work.size(chunk)
            observer.finished(chunk)
            observer.done(finished)


def _error(chunk: int, failure: Failure) -> CryobenchError:
    """The exception for a chunk that failed."""
    error = failure.error
    if isinstance(error, CryobenchError):
        return error
    if error is None:
        return ExecutorError(f"chunk {chunk}: {DEATHS} workers died while running it: out of memory, or a crash")
    if isinstance(error, Stopped):
        return ExecutorError(f"chunk {chunk}: {error}")
    return PluginError(f"chunk {chunk}: {described(error)}")
