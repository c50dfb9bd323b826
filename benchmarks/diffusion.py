"""Quality and cost of the solvers with a diffusion prior, compared with `pinv` and `tv`.

    uv run python benchmarks/diffusion.py --out runs/diffusion

Simulated noisy particles (snr 2), sum pooling by K = 2, 4, 8, 16, 32 with random binary masks at C = 4, exact
measurements; once of structures that the packaged prior was trained on (other orientations, other noise) and once of
held-out ones. PSNR in dB (data range 1) to the measured image and to the clean one, mean over images with a 95%
bootstrap interval. `ceiling` is the clean image plus the component of the noise that the measurements determine. NFE:
network evaluations per image. Cells saved in --out are reused, including those of held-out structures saved there by
`cryobench sweep leaderboards/pixel.yaml`, which are the same.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import cryobench as cb
from cryobench.leaderboard.statistics.bootstrap import bootstrap_interval, mean
from cryobench.record import Record
from cryobench.solvers.reverse import WithDiffusion

BLOCKS = (2, 4, 8, 16, 32)
DATA = {
    "trained on": "simulate:train,snr=2,count=1000",
    "held out": "simulate:6zu5+6zu5-large+6zu5-small,snr=2,count=1000",
}
SOLVERS = (
    "pinv", "tv", "hqs", "ddnm:steps=20,eta=1", "ddnm:steps=20,eta=1,samples=8", "diffpir:steps=20,zeta=1",
    "pigdm:steps=20", "daps:steps=10,ode_steps=2", "cryosense", "dps:zeta=3",
    "dmplug:steps=300,lr=0.03,ddim_steps=2",
)  # fmt: skip
"""Each with its best setting found by tools/tune_diffusion.py."""
METRICS = ("psnr", "ssim", "frc", "null_error")
COLUMNS = ("psnr", "psnr_clean")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--solver", action="append", help="can be repeated; default: all")
    parser.add_argument("--block", action="append", type=int, help="K; can be repeated; default: 2 to 32")
    parser.add_argument("--data", action="append", choices=DATA, help="can be repeated; default: both")
    parser.add_argument("--images", default="0:16")
    parser.add_argument("--prior", help="a prior for all solvers that take one; default: embedded")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("runs/diffusion"))
    parser.add_argument("--quick", action="store_true", help="two solvers, one cell, one image, to test that it runs")
    given = parser.parse_args()
    solvers, blocks, data = given.solver or SOLVERS, given.block or BLOCKS, given.data or list(DATA)
    if given.quick:
        solvers, blocks, data, given.images = ("pinv", "hqs"), (16,), ["held out"], "0"
    if given.prior:
        solvers = [with_prior(solver, given.prior) for solver in solvers]
    for name in data:
        found: dict[str, list[Record]] = {}
        for block in blocks:
            records = cb.run(
                solvers, f"sumpool:{block},count={block * block // 4}", data=DATA[name], images=given.images,
                metrics=METRICS, device=given.device, out=given.out, ceiling=True,
            )  # fmt: skip
            for record in records:
                found.setdefault(record.solver, []).append(record)
        print_table(name, blocks, found)


def with_prior(solver: str, prior: str) -> str:
    """The solver's spec with this prior, if it takes one."""
    if not isinstance(cb.solver(solver), WithDiffusion):
        return solver
    return f"{solver}{',' if ':' in solver else ':'}prior={prior}"


def print_table(name: str, blocks: Sequence[int], found: dict[str, list[Record]]) -> None:
    """A table per PSNR, with a row per solver: NFE, seconds per image, the PSNR for each K and its mean."""
    for column, what in zip(COLUMNS, ("the measured image", "the clean image"), strict=True):
        print(f"\n{name}, PSNR to {what}\n")
        heads = ["solver", "NFE", "s/image", *(f"K={block}" for block in blocks), "mean"]
        print("| " + " | ".join(heads) + " |")
        print("|" + "---|" * len(heads))
        for solver, records in found.items():
            cells = [shown(record, column) for record in records]
            means = [mean(record.values[column]) for record in records if column in record.values]
            overall = f"{sum(filter(None, means)) / len(means):.2f}" if len(means) == len(blocks) else ""
            cost = [mean([record.counters.get("nfe", 0.0) for record in records]),
                    mean([record.timing.get("seconds_per_image", 0.0) for record in records])]  # fmt: skip
            costs = [f"{cost[0] or 0:.0f}", f"{cost[1] or 0:.3g}"]
            print("| " + " | ".join([solver, *costs, *cells, overall]) + " |", flush=True)


def shown(record: Record, column: str) -> str:
    """Mean and interval, or the reason why there is none."""
    values = record.values.get(column)
    if not values:
        return record.reason or ""
    low, high = bootstrap_interval(values)
    interval = "" if low is None or high is None else f" [{low:.2f}, {high:.2f}]"
    return f"{mean(values):.2f}{interval}"


if __name__ == "__main__":
    main()
