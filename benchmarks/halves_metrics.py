"""Errors that are estimated from the other half of simulated movies, beside the true ones.

    uv run python benchmarks/halves_metrics.py          # 33 micrographs of 1024 x 1024 pixels: 3 minutes of a core
    uv run python benchmarks/halves_metrics.py --quick  # 4 micrographs of 512 x 512 pixels

Solvers `pinv` (the input), `gaussian`, `wiener` and `n2n` on micrographs of 10 frames of 5 e/Å², five frames for each
half, or nine against one, whose noise then has three times the deviation (`ratio` of `simulate_movies`). Printed for
each:

- the mean of `mse_other` over the micrographs, relative to that of the true error, its standard error from
  `mse_other_se`, and the difference of the two in standard errors;
- the largest difference between `frc_other` and the ring correlation with the clean image, over bands of `BAND` rings:
  the mean over the micrographs whose correlation in the band is above 1/2, where there are at least `FEWEST`.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch

from cryobench import run
from cryobench.errors import DataWarning
from cryobench.results.store import Results

SOLVERS = ("gaussian", "wiener", "n2n")
AT_ONCE = 11
"""Micrographs of a run, which stay in memory."""
BAND, FEWEST = 8, 8
VALUES, CURVES = ("mse_other", "mse_other_se", "mse_clean"), ("frc_clean", "frc_other")


def measured(spec: str, count: int) -> dict[str, dict[str, np.ndarray]]:
    """By solver, the values of each column [n] and the curves `frc_clean` and `frc_other` [n, rings]."""
    found: dict[str, dict[str, list[np.ndarray]]] = {}
    for start in range(0, count, AT_ONCE):
        with tempfile.TemporaryDirectory() as folder:
            records = run(SOLVERS, "identity", data=f"{spec},count={count}", protocol="halves", out=folder,
                          images=f"{start}:{min(start + AT_ONCE, count)}",
                          metrics=["mse", "frc", "mse_other", "frc_other"])  # fmt: skip
            for record in records:
                if record.status != "ok":
                    raise SystemExit(f"{record.solver}: {record.reason}")
                path = Results(Path(folder)).find(record.hash)
                assert path is not None
                with np.load(path / "curves.npz") as curves:
                    values = {
                        name: np.array(record.values[name]) for name in ("mse_other", "mse_other_se", "mse_clean")
                    }
                    values |= {name: curves[name] for name in ("frc_clean", "frc_other")}
                for name, value in values.items():
                    found.setdefault(record.solver, {}).setdefault(name, []).append(value)
    return {
        solver: {name: np.concatenate(parts) for name, parts in by_name.items()} for solver, by_name in found.items()
    }


def banded(curves: np.ndarray) -> np.ma.MaskedArray:
    """The mean over bands of rings, [n, bands], masked where no ring was measurable."""
    bands = curves.shape[1] // BAND
    return np.ma.masked_invalid(curves[:, : bands * BAND].reshape(len(curves), bands, BAND)).mean(axis=2)


def largest_difference(values: dict[str, np.ndarray]) -> float:
    """That between the estimated and the true ring correlations, see above."""
    correct, found = banded(values["frc_clean"]), banded(values["frc_other"])
    used = correct.filled(0) > 0.5
    enough = used.sum(axis=0) >= min(FEWEST, len(used))
    return float(np.abs(np.ma.array(found - correct, mask=~used).mean(axis=0)[enough]).max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    side, counts = (512, {1: 2, 9: 2}) if arguments.quick else (1024, {1: 11, 9: 22})
    print(
        f"{'ratio':5} {'micrographs':11} {'solver':10} {'mse_other / true':>16} {'s. e.':>6} {'in s. e.':>8} {'frc':>6}"
    )
    for ratio, count in counts.items():
        for solver, values in measured(
            f"simulate_movies:3mht,frames=10,dose=5,size={side},ratio={ratio}", count
        ).items():
            true, error = values["mse_clean"].mean(), math.sqrt((values["mse_other_se"] ** 2).sum()) / count
            estimate = values["mse_other"].mean()
            off = largest_difference(values)
            print(f"{ratio:5} {count:11} {solver:10} {estimate / true:16.4f} {error / true:6.2%} "
                  f"{(estimate - true) / error:8.2f} {off:6.3f}", flush=True)  # fmt: skip


if __name__ == "__main__":
    warnings.simplefilter("ignore", DataWarning)
    main()
