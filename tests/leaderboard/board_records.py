"""Records of cells that ran, or did not, for the tests of leaderboards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cryobench.record import Record

PSNR = {"name": "psnr", "direction": "higher", "unit": "dB"}
MSE = {"name": "mse", "direction": "lower", "unit": ""}
RATE = {"name": "rate", "direction": "none", "unit": "", "interval": "binomial"}
OTHER = {"name": "other", "direction": "none", "unit": ""}


def record(solver: str = "pinv", psnr: Sequence[float | None] = (20.0, 22.0), **changes: Any) -> Record:
    """A cell that ran and has one metric, on two images unless more values are given."""
    fields: dict[str, Any] = {
        "hash": "0",
        "status": "ok",
        "reason": "",
        "solver": solver,
        "operator": "sumpool:16",
        "noise": "none",
        "data": "demo",
        "seed": 0,
        "images": [f"demo@{i}" for i in range(len(psnr))],
        "compression": 4.0,
        "values": {"psnr": list(psnr)},
        "columns": [PSNR],
        "timing": {"seconds_per_image": 0.5, "setup_seconds": 1.0},
        "counters": {"nfe": 0.0, "operator_calls": 3.0},
        "peak_memory_mib": 512.0,
        "problem": {"data_digest": "aaaa1111"},
        "environment": {"device": "cpu", "version": "0.1.0"},
    }
    return Record(**(fields | changes))


def absent(status: str, solver: str, **changes: Any) -> Record:
    """A cell that did not run: its record states only the task."""
    empty: dict[str, Any] = {"values": {}, "columns": [], "timing": {}, "counters": {}}
    empty |= {"environment": {}, "peak_memory_mib": None, "compression": None, "reason": f"why {solver}"}
    return record(solver, status=status, **(empty | changes))
