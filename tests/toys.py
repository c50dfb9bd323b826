"""Solvers with known best parameters, and a source that logs which images were read."""

from __future__ import annotations

SOLVERS = '''
import time
from dataclasses import dataclass
from typing import Annotated, Literal

from cryobench.core import meters
from cryobench.core import Reconstruction, Solver
from cryobench.solvers.pinv import minimum_norm
from cryobench.spec import Choice, Range


@dataclass(frozen=True)
class Toy(Solver):
    """Adds an error to the least-norm solution: on `identity` the mse is ((x - 0.3)^2 + [way is bad]) / 4."""

    x: Annotated[float, Range(-1, 1), "best at 0.3"] = 0.0
    way: Annotated[Literal["bad", "good"], Choice(), "good is better"] = "bad"
    cost: Annotated[int, "network evaluations"] = 1
    wait: Annotated[float, "seconds to take"] = 0.0
    refuse: Annotated[float, "fails for x above it"] = 2.0
    interrupt: Annotated[float, "Ctrl-C for x above it"] = 2.0

    def solve(self, problem, *, rng, progress=None):
        if self.x > self.refuse:
            raise RuntimeError("x is too large")
        if self.x > self.interrupt:
            raise KeyboardInterrupt
        time.sleep(self.wait)
        for _ in range(self.cost):
            meters.count(meters.NETWORK, problem.batch)
        off = ((self.x - 0.3) ** 2 + (self.way == "bad")) ** 0.5
        return Reconstruction(minimum_norm(problem) + off)


@dataclass(frozen=True)
class Other(Toy):
    """The same ranges at a higher cost."""

    cost: Annotated[int, "network evaluations"] = 3


@dataclass(frozen=True)
class Picky(Toy):
    """Does not support sum pooling."""

    def unsupported(self, problem):
        return "no blocks, please" if problem.operator.block > 1 else None


@dataclass(frozen=True)
class Plain(Solver):
    """Nothing to tune."""

    x: Annotated[float, "no range"] = 0.0

    def solve(self, problem, *, rng, progress=None):
        return Reconstruction(minimum_norm(problem) + self.x)
'''

SPY = '''
import os
from dataclasses import dataclass

import numpy as np

from cryobench.core import Source, Stack


@dataclass(frozen=True)
class Spy(Source):
    """Twelve images, 8 x 8; appends the number of each image that is read to $SPIED."""

    seed: int = 0
    size: int = 8

    def open(self):
        return SpyStack(self)


class SpyStack(Stack):
    label = "spy"

    def __init__(self, recipe):
        self.recipe, self.shape = recipe, (recipe.size, recipe.size)

    def __len__(self):
        return 12

    def read(self, index):
        with open(os.environ["SPIED"], "a") as file:
            file.write(f"{self.recipe.seed}/{index}\\n")
        return np.random.default_rng([self.recipe.seed, index]).normal(size=self.shape).astype(np.float32)
'''

GROUPS = {
    "cryobench.solvers": {
        "toy": "toy_solvers:Toy",
        "other": "toy_solvers:Other",
        "plain": "toy_solvers:Plain",
        "picky": "toy_solvers:Picky",
    },
    "cryobench.sources": {"spy": "spy_source:Spy"},
}


def install(install_plugin) -> None:
    install_plugin("cryobench-toys", GROUPS, toy_solvers=SOLVERS, spy_source=SPY)
