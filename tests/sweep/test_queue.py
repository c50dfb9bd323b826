"""Who gets which cell: every cell once, and neighbours together."""

from __future__ import annotations

import random
from itertools import pairwise
from types import SimpleNamespace

from cryobench.sweep.queue import Queue


def tasks(problems: int, solvers: int):
    return [SimpleNamespace(problem=problem, solver=solver) for problem in range(problems) for solver in range(solvers)]


def drawn(queue: Queue, workers: int, seed: int) -> list[tuple[int, SimpleNamespace]]:
    """What workers that finish at random times are given."""
    rng = random.Random(seed)
    found = []
    while (task := queue.take(worker := rng.randrange(workers))) is not None:
        found.append((worker, task))
    return found


def test_every_task_is_taken_once():
    for seed in range(20):
        asked = tasks(5, 7)
        queue = Queue(asked)
        assert len(queue) == 35
        found = [task for _, task in drawn(queue, 3, seed)]
        assert sorted(map(id, found)) == sorted(map(id, asked))
        assert len(queue) == 0


def test_one_worker_takes_them_in_order():
    asked = tasks(3, 4)
    assert [task for _, task in drawn(Queue(asked), 1, 0)] == asked


def test_a_worker_stays_with_its_problem_and_helps_out_only_when_all_are_taken():
    found = drawn(Queue(tasks(6, 50)), 3, 1)
    begun: set[int] = set()
    last: dict[int, int] = {}
    for place, (worker, task) in enumerate(found):
        if last.get(worker) != task.problem:
            left = {other.problem for _, other in found[place:]}
            assert last.get(worker) not in left  # its own had nothing left
            assert task.problem not in begun or left <= begun  # and nobody was waiting for a first worker
        begun.add(task.problem)
        last[worker] = task.problem
    own = [[task.problem for who, task in found if who == worker] for worker in range(3)]
    changes = sum(one != other for problems in own for one, other in pairwise(problems))
    assert changes < 20  # and not at most of the 300


def test_who_helps_takes_from_the_problem_with_most_left():
    queue = Queue([SimpleNamespace(problem=problem, solver=0) for problem in "aabbbb"])
    assert [queue.take(worker).problem for worker in ("x", "y")] == ["a", "b"]
    assert queue.take("z").problem == "b"


def test_what_is_put_back_comes_next():
    queue = Queue(tasks(2, 2))
    first = queue.take("x")
    queue.put_back(first)
    assert queue.take("x") is first
    everything = drawn(queue, 2, 0)
    assert len(everything) == 3
    queue.put_back(first)
    assert (queue.take("new"), queue.take("new")) == (first, None)
