"""Assignment of cells to workers: every cell once, cells of one problem together."""

from __future__ import annotations

import random
from itertools import pairwise
from types import SimpleNamespace

from cryobench.sweep.queue import Queue


def tasks(problems: int, solvers: int):
    return [SimpleNamespace(problem=problem, solver=solver) for problem in range(problems) for solver in range(solvers)]


def drawn(queue: Queue, workers: int, seed: int) -> list[tuple[int, SimpleNamespace]]:
    """The cells that workers take, who finish at random times."""
    rng = random.Random(seed)
    found = []
    while (task := queue.take(worker := rng.randrange(workers))) is not None:
        found.append((worker, task))
    return found


def test_every_cell_is_taken_once():
    for seed in range(20):
        given = tasks(5, 7)
        queue = Queue(given)
        assert len(queue) == 35
        found = [task for _, task in drawn(queue, 3, seed)]
        assert sorted(map(id, found)) == sorted(map(id, given))
        assert len(queue) == 0


def test_one_worker_takes_cells_in_order():
    given = tasks(3, 4)
    assert [task for _, task in drawn(Queue(given), 1, 0)] == given


def test_a_worker_keeps_its_problem_and_joins_another_only_when_all_are_started():
    found = drawn(Queue(tasks(6, 50)), 3, 1)
    begun: set[int] = set()
    last: dict[int, int] = {}
    for place, (worker, task) in enumerate(found):
        if last.get(worker) != task.problem:
            left = {other.problem for _, other in found[place:]}
            assert last.get(worker) not in left  # its own problem has no cells left
            assert task.problem not in begun or left <= begun  # and no problem without a worker is left
        begun.add(task.problem)
        last[worker] = task.problem
    own = [[task.problem for name, task in found if name == worker] for worker in range(3)]
    changes = sum(one != other for problems in own for one, other in pairwise(problems))
    assert changes < 20  # of 300 cells


def test_a_joining_worker_takes_from_the_problem_with_the_most_cells():
    queue = Queue([SimpleNamespace(problem=problem, solver=0) for problem in "aabbbb"])
    assert [queue.take(worker).problem for worker in ("x", "y")] == ["a", "b"]
    assert queue.take("z").problem == "b"


def test_a_returned_cell_comes_next():
    queue = Queue(tasks(2, 2))
    first = queue.take("x")
    queue.put_back(first)
    assert queue.take("x") is first
    everything = drawn(queue, 2, 0)
    assert len(everything) == 3
    queue.put_back(first)
    assert (queue.take("new"), queue.take("new")) == (first, None)
