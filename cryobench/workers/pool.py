"""Hands out items to workers, one at a time each, and collects what they return."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from cryobench.errors import ExecutorError, ResultsError
from cryobench.workers.executors import Workers
from cryobench.workers.job import Job

Item = TypeVar("Item")

DEATHS = 3
"""Number of workers that may die while running an item before it counts as failed."""
_AGAIN = object()
POLL = 0.5
"""Seconds between two queries of the present workers."""


class Queue(Protocol[Item]):
    """Items that wait for a worker."""

    def __len__(self) -> int: ...

    def take(self, worker: Hashable) -> Item | None:
        """Remove the next item for this worker; None if there is none."""

    def put_back(self, item: Item, /) -> None:
        """Return an item that was taken and not finished."""


@dataclass(frozen=True)
class Failure:
    """Why an item failed: an exception that its job raised, or None if `DEATHS` workers died while running it."""

    error: BaseException | None


class Pool(Generic[Item]):
    """Runs items on workers; iterate over `run`.

    job: of an item. name: of an item, in warnings. worker_seconds: total time of all workers, busy or not.
    """

    def __init__(
        self, workers: Workers, job: Callable[[Item], Job], name: Callable[[Item], str], warn: Callable[[str], None]
    ):
        self._workers, self._job, self._name, self._warn = workers, job, name, warn
        self._running: dict[Future[Any], tuple[Hashable, Item]] = {}
        self._deaths: Counter[int] = Counter()
        self._waited = False
        self.worker_seconds = 0.0

    def run(self, queue: Queue[Item], started: Callable[[Item, Hashable], None]) -> Iterator[tuple[Item, Any]]:
        """Each item with the result of its job or a `Failure`, as they finish. started: is called with each item and
        the name of its worker.

        Raises `ResultsError` and `ExecutorError` of a job, which end the run.
        """
        start = time.perf_counter()
        while queue or self._running:
            names = self._workers.names()
            busy = {name for name, _ in self._running.values()}
            for name in names:
                if name not in busy and (item := queue.take(name)) is not None:
                    started(item, name)
                    self._running[self._workers.submit(name, self._job(item))] = name, item
            now = time.perf_counter()
            self.worker_seconds += len(names) * (now - start)
            start = now
            if not self._running:
                self._await_workers()
            done, _ = wait(self._running, timeout=POLL, return_when=FIRST_COMPLETED)
            for future in done:
                name, item = self._running.pop(future)
                outcome = self._outcome(future, name, item)
                if outcome is _AGAIN:
                    queue.put_back(item)
                else:
                    yield item, outcome
        self.worker_seconds += len(self._workers.names()) * (time.perf_counter() - start)

    def _await_workers(self) -> None:
        """Sleep while there is no worker; warn the first time."""
        if not self._waited:
            self._warn("no worker is available; waiting for one")
        self._waited = True
        time.sleep(POLL)

    def _outcome(self, future: Future[Any], name: Hashable, item: Item) -> Any:
        """The result of a job or a `Failure`; `_AGAIN` if the item must run again."""
        if future.cancelled():  # the connection to the workers was lost and may return
            return _AGAIN
        error = future.exception()
        if error is None:
            return future.result()
        if isinstance(error, ResultsError | ExecutorError):
            raise error
        if not isinstance(error, BrokenExecutor):
            return Failure(error)
        self._workers.replace(name)
        self._deaths[id(item)] += 1
        if self._deaths[id(item)] == DEATHS:
            return Failure(None)
        self._warn(f"{self._name(item)}: its worker died; running it again")
        return _AGAIN
