"""Runs the cells of a plan -> records: batching, timing, memory, failures."""

from cryobench.runner.cells import CellRunner, MissingFileWarnings, describe, execute, failed_record, result_name, run
from cryobench.runner.memory import is_out_of_memory
from cryobench.runner.observer import Observer

__all__ = [
    "CellRunner",
    "MissingFileWarnings",
    "Observer",
    "describe",
    "execute",
    "failed_record",
    "is_out_of_memory",
    "result_name",
    "run",
]
