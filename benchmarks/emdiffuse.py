"""Conditional diffusion and plain regression of the same network, beside what needs no training.

    uv run python benchmarks/emdiffuse.py FOLDER --part denoising        # noise of half the deviation, sections
    uv run python benchmarks/emdiffuse.py FOLDER --part interpolation    # three of four sections are missing, volumes
    uv run python benchmarks/emdiffuse.py FOLDER --part interpolation --steps 300 --scored 4     # a quick look

Networks `tiny` are trained by `cryobench train` in one thread, with 20 processor minutes each on the machine of the
recorded figures, on volumes `tissue` of seed 0, and scored on others. FOLDER keeps them: the same command continues,
and processor time is that of all parts of a training. Networks: `regression`; `diffusion`, of the image; `residual`,
diffusion of what the regression leaves.

Scores are means over sections or volumes that are independent of each other; +- is the half width of the 95% interval
(Student's t) of the mean difference to the row `regression`. Every row is given the true deviation of the noise, BM3D
too (the plugin cryobench-bm3d, if it is installed); the oracle of TV has for each section the weight with the least
error.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.stats import t as student

import cryobench as cb
from cryobench.registry import installed

RECIPE = ("--network", "tiny", "--patch", 64, "--batch", 8, "--lr", 1e-3, "--warmup", 100, "--ema", 0.998,
          "--validate-every", 250, "--sample-every", 10**6, "--checkpoint-every", 250, "--preload", "ram")  # fmt: skip
NOISE = 0.5
TASKS = {
    "denoising": ("tissue:0,count=8,depth=64,size=128,view=sections",
                  "tissue:50,count=1,depth=64,size=128,view=sections", f"noise={NOISE}"),
    "interpolation": ("tissue:0,count=12,depth=96,size=96", "tissue:50,count=1,depth=96,size=96", "gap=4,joint=true"),
}  # fmt: skip
"""Data, validation data and parameters of the objectives."""
SAMPLES = 1, 2, 4, 8
TV = tuple(float(x) for x in np.geomspace(0.02, 0.3, 9))
"""Weights among which the truth chooses for each section."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--part", choices=TASKS, required=True)
    parser.add_argument("--steps", type=int, default=2200, help="updates of each network")
    parser.add_argument("--scored", type=int, default=0, help="sections or volumes [24 or 8]")
    parser.add_argument("--sampling-steps", type=int, default=20)
    parser.add_argument("--without", action="append", default=[], choices=("diffusion", "residual"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    networks = {name: given.folder / f"{given.part}_{name}" for name in ("regression", "diffusion", "residual")
                if name not in given.without}  # fmt: skip
    for name, out in networks.items():
        seconds = train(given.part, name, out, networks["regression"], given.steps)
        print(f"{name}: {seconds / 60:.1f} processor minutes", flush=True)
    solvers = {"regression": f"regression:model={networks['regression']}"}
    for name in ("diffusion", "residual"):
        if name in networks:
            solvers |= {f"{name}, {count} of {given.sampling_steps} steps":
                        f"emdiffuse:model={networks[name]},samples={count},steps={given.sampling_steps}"
                        for count in SAMPLES}  # fmt: skip
    (denoising if given.part == "denoising" else interpolation)(solvers, given.scored)


def train(part: str, name: str, out: Path, regression: Path, steps: int) -> float:
    """Train a network, or continue. Returns the processor seconds of all parts of the training."""
    data, validation, options = TASKS[part]
    objective = "regression:" if name == "regression" else "conditional:predict=velocity,"
    objective += options + (f",mean={regression.resolve()}" if name == "residual" else "")
    record = out.with_suffix(".json")
    spent = json.loads(record.read_text())["processor_seconds"] if record.exists() else 0.0
    command = [sys.executable, "-m", "cryobench", "train", "--quiet", "--out", out, "--objective", objective,
               "--data", data, "--validation", validation, "--steps", steps, *RECIPE]  # fmt: skip
    before = children_seconds()
    try:
        subprocess.run([str(part) for part in command], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    finally:
        spent += children_seconds() - before
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(json.dumps({"processor_seconds": spent}))
    return spent


def children_seconds() -> float:
    """Processor seconds of the child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def denoising(solvers: Mapping[str, str], scored: int) -> None:
    """Sections of `scored` volumes, one of each."""
    count = scored or 24
    data, chosen = f"tissue:1000,count={count},depth=8,size=128,view=sections", f"4:{8 * count}:8"
    rel = f"gaussian:rel={NOISE}"
    rows = {"input": "pinv", "gaussian": "gaussian", "wiener": "wiener", "tv": "tv", **solvers}
    if "bm3d" in installed().names("solvers"):
        rows["bm3d"] = "bm3d"
    else:
        print("bm3d: not measured; uv pip install ./plugins/cryobench-bm3d")
    weights = {f"tv {weight:.3g}": f"tv:{weight}" for weight in TV}
    found = measured(
        rows | weights, "identity", rel, data, chosen, ("psnr", "ssim", "power_ratio", "coverage", "calibration")
    )
    best = {"tv, oracle weight": np.max([found.pop(name)["psnr"] for name in weights], axis=0)}
    report(found | {name: {"psnr": values} for name, values in best.items()}, "psnr")


def interpolation(solvers: Mapping[str, str], scored: int) -> None:
    """Volumes with every fourth section."""
    count = scored or 8
    data = f"tissue:1000,count={count},depth=33,size=64"
    rows = {"nearest": "interpolate:nearest", "cubic": "interpolate:cubic", "linear": "interpolate:linear",
            "flow, TV-L1": "flow", "flow, ilk": "flow:ilk", **solvers}  # fmt: skip
    scores = ("missing_psnr", "section_ratio", "power_ratio", "coverage", "calibration")
    report(measured(rows, "slices:4", "none", data, f"0:{count}", scores), "missing_psnr")


def measured(
    rows: Mapping[str, str], operator: str, noise: str, data: str, images: str, metrics: Sequence[str]
) -> dict[str, dict[str, np.ndarray]]:
    """The scores of each image by row."""
    records = cb.run(
        list(rows.values()), operator, noises=noise, data=data, images=images, metrics=metrics, floor=False
    )
    found = {}
    for (name, spec), record in zip(rows.items(), records, strict=True):
        if record.status != "ok":
            raise SystemExit(f"{spec}: {record.reason}")
        found[name] = {score: np.array(values, float) for score, values in record.values.items()}
    return found


def report(rows: Mapping[str, Mapping[str, np.ndarray]], by: str) -> None:
    """Print the means, and the differences to the regression with their intervals."""
    scores = [by, *(score for score in rows["regression"] if score != by)]
    reference = rows["regression"][by]
    width = student.ppf(0.975, len(reference) - 1) / np.sqrt(len(reference))
    print(f"\n{len(reference)} volumes\n\n| row | {' | '.join([by, 'to regression', *scores[1:]])} |")
    print("|---" * (len(scores) + 2) + "|")
    for name, row in rows.items():
        difference = row[by] - reference
        texts = [f"{row[by].mean():.2f}", f"{difference.mean():+.2f} +- {width * difference.std(ddof=1):.2f}"]
        texts += [f"{np.mean(row[score]):.3f}" if score in row and np.isfinite(row[score]).all() else ""
                  for score in scores[1:]]  # fmt: skip
        print(f"| {name} | {' | '.join(texts)} |")


if __name__ == "__main__":
    main()
