"""What a sweep adds to the work of its cells, and what a second worker gains.

Trivial cells: `pinv` on 32 x 32 images, one metric, `--cells` of them by as many seeds. A line is a process of its own.
"overhead": the time between the first and the last record, a cell, beyond what the cell itself says it took (set-up,
solver, metrics). "scaling": cells a second with two worker processes over that with one, both between the first and
the last record, as starting takes the same few seconds whatever there is to do; the total is given too. One after
the other, and the medians of `--repeats`: a shared machine is not equally fast for long.

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


def swept(suite: Path, out: Path, executor: str) -> tuple[float, float, float]:
    """Cells a second between the first and the last record; seconds a cell beyond its own; seconds of the whole."""
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
    whole = time.perf_counter() - start
    records = [json.loads(path.read_text()) for path in out.glob("*/record.json")]
    made = sorted(datetime.fromisoformat(record["environment"]["created"]).timestamp() for record in records)
    own = [sum(record["timing"][f"{part}_seconds"] for part in ("setup", "solver", "score")) for record in records]
    passed = made[-1] - made[0]
    return (len(made) - 1) / passed, passed / (len(made) - 1) - float(np.mean(own)), whole


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
                rate, beyond, whole = swept(suite, folder / f"{executor}-{repeat}", executor)
                rates[executor].append(rate)
                figures = f"{rate:7.1f} cells/s, overhead {1000 * beyond:5.1f} ms a cell, whole {whole:6.1f} s"
                print(f"{executor:12} {figures}", flush=True)
    for other in EXECUTORS[:2]:
        ratios = [two / one for two, one in zip(rates[EXECUTORS[2]], rates[other], strict=True)]
        print(f"processes:2 over {other}: median {median(ratios):.2f} of {', '.join(f'{r:.2f}' for r in ratios)}")


if __name__ == "__main__":
    main()
