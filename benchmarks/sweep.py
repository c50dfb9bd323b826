"""Overhead of a sweep per cell, and speed-up with a second worker.

Trivial cells: `pinv` on 32 x 32 images, one metric, `--cells` seeds. Each line is a separate process. "overhead" is the
time between the first and the last record, per cell, minus the time recorded for the cell itself (set-up, solver,
metrics). The ratios at the end compare cells per second of two worker processes and of one. Start-up, which does not
depend on the number of cells, is excluded; "total" includes it. Executors alternate and medians over `--repeats` are
reported, because the speed of a shared machine varies.

    uv run python benchmarks/sweep.py            # 2,000 cells
    uv run python benchmarks/sweep.py --quick    # 60 cells, once
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from statistics import median

import numpy as np

EXECUTORS = ("local", "processes:1", "processes:2")


def run_sweep(suite: Path, out: Path, executor: str) -> tuple[float, float, float]:
    """Cells per second between the first and the last record; overhead in seconds per cell; total seconds."""
    command = [
        sys.executable,
        "-m",
        "cryobench",
        "sweep",
        str(suite),
        "--out",
        str(out),
        "-e",
        executor,
        "--threads",
        "1",
    ]
    start = time.perf_counter()
    subprocess.run([*command, "--quiet", "--csv", str(out) + ".csv"], check=True, stdout=subprocess.DEVNULL,
                   env=os.environ | {"OMP_NUM_THREADS": "1"})  # fmt: skip
    total = time.perf_counter() - start
    records = [json.loads(path.read_text()) for path in out.glob("*/record.json")]
    created = sorted(datetime.fromisoformat(record["environment"]["created"]).timestamp() for record in records)
    work = [sum(record["timing"][f"{part}_seconds"] for part in ("setup", "solver", "score")) for record in records]
    elapsed = created[-1] - created[0]
    return (len(created) - 1) / elapsed, elapsed / (len(created) - 1) - float(np.mean(work)), total


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--cells", type=int, default=2000)
    arguments.add_argument("--quick", action="store_true", help="60 cells, once")
    arguments.add_argument("--repeats", type=int, default=5)
    chosen = arguments.parse_args()
    cells, repeats = (60, 1) if chosen.quick else (chosen.cells, chosen.repeats)
    with tempfile.TemporaryDirectory(prefix="cryobench-sweep-") as name:
        folder = Path(name)
        np.save(folder / "images.npy", np.random.default_rng(0).normal(size=(1, 32, 32)).astype(np.float32))
        suite = folder / "suite.yaml"
        suite.write_text(f"data: {folder}/images.npy\nimages: '0:1'\nmetrics: psnr\nsolvers: pinv\n"
                         f"operators: sumpool:4\nseeds: {list(range(cells))}\n")  # fmt: skip
        rates: dict[str, list[float]] = {executor: [] for executor in EXECUTORS}
        for repeat in range(repeats):
            for executor in EXECUTORS:
                rate, overhead, total = run_sweep(suite, folder / f"{executor}-{repeat}", executor)
                rates[executor].append(rate)
                figures = f"{rate:7.1f} cells/s, overhead {1000 * overhead:5.1f} ms per cell, total {total:6.1f} s"
                print(f"{executor:12} {figures}", flush=True)
    for other in EXECUTORS[:2]:
        ratios = [two / one for two, one in zip(rates[EXECUTORS[2]], rates[other], strict=True)]
        print(f"processes:2 over {other}: median {median(ratios):.2f} of {', '.join(f'{r:.2f}' for r in ratios)}")


if __name__ == "__main__":
    main()
