"""Synthetic results for the tests of the page: records, their run folders, and their page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from cryobench import figures
from cryobench.leaderboard.page import to_page
from cryobench.leaderboard.table import leaderboard
from cryobench.record import Record
from cryobench.results.store import CURVES, VIEWS

COLUMNS = [
    {"name": "psnr", "direction": "higher", "unit": "dB"},
    {"name": "mse", "direction": "lower", "unit": ""},
]


def record(solver: str, operator: str = "sumpool:8", quality: float = 20.0, **fields) -> Record:
    """A cell of four images whose psnr is about `quality`, a little different from image to image."""
    images = fields.pop("images", 4)
    psnr = [quality + 0.25 * k + 0.01 * len(solver) * (k % 2) for k in range(images)]
    ran = fields.get("status", "ok") == "ok"
    return Record(
        **{
            "hash": f"{solver} {operator} {fields.get('noise', 'none')} {fields.get('seed', 0)}",
            "status": "ok",
            "reason": "",
            "noise": "none",
            "data": "demo",
            "seed": 0,
            "compression": 4.0,
            "timing": {"seconds_per_image": fields.pop("seconds", 1.0)},
            "counters": {"nfe": 0.0, "operator_calls": 10.0},
            "environment": {"created": "2026-01-02T03:04:05", "device": "cpu", "version": "1"},
            "problem": {"image_shape": [16, 16], "pixel_size_angstrom": [2.0] * images},
        }
        | {"solver": solver, "operator": operator, "images": [str(k) for k in range(images)]}
        | ({"values": {"psnr": psnr, "mse": [10 ** (-p / 10) for p in psnr]}, "columns": COLUMNS} if ran else {})
        | fields
    )


def results() -> list[Record]:
    """Two families of operators, two noises; a floor everywhere, a ceiling, a skipped and a failed cell."""
    records = []
    for operator, compression, drop in (("sumpool:8,count=32", 2.0, 0), ("sumpool:8", 4.0, 2), ("identity", 1.0, 1)):
        for noise in ("none", "gaussian:0.1"):
            shared = {"operator": operator, "noise": noise, "compression": compression}
            records += [
                record("pinv", quality=20 - drop, seconds=0.01, floor=True, **shared),
                record("tv", quality=24.5 - drop, seconds=2.0, **shared),
                record("dct:0.1", quality=22 - drop, seconds=1.0, **shared),
                record("slow", quality=21 - drop, seconds=30.0, **shared),
                record("ceiling", quality=30 - drop, ceiling=True, **shared),
                record("wiener", status="skipped", reason="needs <white> noise & a CTF", **shared),
                record("broken", status="failed", reason="ValueError: a\nb", **shared),
            ]
    return records


def fill(folder: Path, seed: int, *, shape: tuple[int, int] = (16, 16), n_images: int = 4) -> Path:
    """A run folder with ring correlations and small images. The truth is the same for all seeds."""
    truth = np.random.default_rng(0).uniform(-1, 1, (n_images, *shape))
    estimate = truth + 0.2 * np.random.default_rng(seed).normal(size=truth.shape)
    folder.mkdir(parents=True)
    rings = np.linspace(1, 0.1, min(shape) // 2)
    np.savez_compressed(folder / CURVES, frc=np.stack([rings ** (1 + 0.1 * seed)] * n_images))
    figures.write_views(truth, estimate, images=list("0123"[:n_images]), pixel_size=2.0, path=folder / VIEWS)
    return folder


def folders(root: Path, records: Sequence[Record]) -> dict[str, Path]:
    """A filled folder for each cell that ran."""
    ran = [record for record in records if record.status == "ok"]
    return {record.hash: fill(root / f"cell-{seed}", seed) for seed, record in enumerate(ran)}


def page(records: Sequence[Record], folders: Mapping[str, Path] | None = None, by: str = "psnr") -> str:
    return to_page(leaderboard(records, by=by), records, (folders or {}).get)
