"""Time and memory of `cryobench leaderboard` on many records, in each format.

Synthetic run folders are written to a temporary folder: ten solvers on every problem, including the floor and one that
is mostly skipped, with scores such that neighbouring solvers are hard to distinguish. Each line is a separate process:
its wall time, processor time and peak resident memory. "first" reads every folder and builds the index; the others use
an up-to-date index, except "new", before which ten folders are added.

    uv run python benchmarks/leaderboard.py           # 100,000 records: writing the folders takes 2 GB and some minutes
    uv run python benchmarks/leaderboard.py --quick   # 2,000 records
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from cryobench.record import Record
from cryobench.results.store import METRICS, RECORD

FORMATS = ("rich", "csv", "md", "json", "latex", "html")
COLUMNS = [
    {"name": "psnr", "direction": "higher", "unit": "dB"},
    {"name": "psnr_clean", "direction": "higher", "unit": "dB"},
    {"name": "ssim", "direction": "higher", "unit": ""},
    *({"name": name, "direction": "lower", "unit": ""} for name in ("mse", "mae", "l2", "frc_half", "measurement_mse")),
]
SOLVERS = (
    "pinv",
    "dct",
    "wavelet",
    "tv",
    "tikhonov",
    "cryosense",
    "dps",
    "ddnm:eta=0.8",
    "hqs:steps=20,lam=3",
    "dmplug",
)
SEEDS, NOISES = 10, ("none", "gaussian:rel=0.05", "gaussian:rel=0.1", "poisson:100")


def record(problem: int, solver: int, n_images: int) -> Record:
    """The record of one solver on one problem."""
    rng = np.random.default_rng((problem, solver))
    difficulty = np.random.default_rng(problem).normal(22, 2, n_images)  # of each image, the same for all solvers
    psnr = difficulty + 0.2 * solver + rng.normal(0, 0.3, n_images)
    ran = not (SOLVERS[solver] == "dmplug" and problem % 4)
    seed, noise, operator = problem % SEEDS, NOISES[problem // SEEDS % len(NOISES)], problem // SEEDS // len(NOISES)
    return Record(
        hash=f"{problem * len(SOLVERS) + solver:064x}",
        status="ok" if ran else "skipped",
        reason="" if ran else "needs a diffusion prior",
        solver=SOLVERS[solver],
        operator=f"sumpool:{2 ** (operator % 5 + 1)},count={operator + 1}",
        noise=noise,
        data="particles.star",
        seed=seed,
        images=[str(image) for image in range(n_images)],
        floor=solver == 0,
        compression=2.0 ** (operator % 4),
        values={column["name"]: (psnr / (1 + number)).tolist() for number, column in enumerate(COLUMNS)} if ran else {},
        columns=COLUMNS if ran else [],
        timing={"seconds_per_image": float(rng.gamma(2.0)), "setup_seconds": 0.1} if ran else {},
        counters={"nfe": 100.0 * solver, "operator_calls": 7.0} if ran else {},
        peak_memory_mib=100.0 if ran else None,
        problem={"data_digest": "sha256:0123", "image_shape": [128, 128], "pixel_size_angstrom": [1.31] * n_images},
        environment={
            "created": f"2026-11-21T00:00:00.{problem * len(SOLVERS) + solver:07d}",
            "device": "cpu",
            "dtype": "float32",
            "version": "0.1.0",
            "hardware": {"processor": "a processor", "cores": 8, "torch_threads": 8},
        },
    )


def write_folders(root: Path, records: range, n_images: int) -> None:
    """Write run folders with the files that a leaderboard reads."""
    for number in records:
        synthetic = record(*divmod(number, len(SOLVERS)), n_images)
        folder = root / f"2026-11-21-{number:07d}"
        folder.mkdir(parents=True)
        fields = dict(vars(synthetic))
        values = fields.pop("values")
        fields.pop("solver_info")
        (folder / RECORD).write_text(json.dumps(fields))
        with (folder / METRICS).open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["image", *values])
            writer.writerows(zip(synthetic.images, *values.values(), strict=True) if values else ())


def measure(root: Path, format: str, output: Path) -> str:
    """Run one process that writes a leaderboard: its wall and processor seconds, peak memory and output size."""
    command = [sys.executable, "-m", "cryobench", "leaderboard", str(root), "--format", format]
    start = time.perf_counter()
    with output.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, env=os.environ | {"COLUMNS": "120"})
        _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        raise SystemExit(f"{' '.join(command)} ended with {status}")
    size = output.stat().st_size / 2**20
    return f"{seconds:7.1f} s {used.ru_utime + used.ru_stime:7.1f} s {used.ru_maxrss / 2**10:7.0f} MiB {size:8.1f} MiB"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--records", type=int, default=100_000)
    arguments.add_argument("--images", type=int, default=8, help="images of each record")
    arguments.add_argument("--quick", action="store_true", help="2,000 records")
    arguments.add_argument("--formats", nargs="+", default=FORMATS, choices=FORMATS)
    chosen = arguments.parse_args()
    n_records = 2000 if chosen.quick else chosen.records
    with tempfile.TemporaryDirectory(prefix="cryobench-leaderboard-") as folder:
        root, output = Path(folder) / "runs", Path(folder) / "output"
        write_folders(root, range(n_records), chosen.images)
        print(f"{n_records} records of {chosen.images} images, {len(COLUMNS)} metric columns")
        print(f"{'':8}{'wall':>9} {'processor':>9} {'peak memory':>11} {'output':>12}")
        print(f"{'first':8}{measure(root, 'csv', output)}", flush=True)
        for format in chosen.formats:
            print(f"{format:8}{measure(root, format, output)}", flush=True)
        write_folders(root, range(n_records, n_records + 10), chosen.images)
        print(f"{'new':8}{measure(root, 'csv', output)}")


if __name__ == "__main__":
    main()
