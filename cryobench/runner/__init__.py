"""Runs the cells of a plan -> records: batching, timing, memory, failures."""

from cryobench.runner.cells import describe, execute, run
from cryobench.runner.memory import is_out_of_memory
from cryobench.runner.observer import Observer

__all__ = ["Observer", "describe", "execute", "is_out_of_memory", "run"]
