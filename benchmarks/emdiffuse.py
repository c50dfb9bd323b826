"""Conditional diffusion and plain regression of the same network, beside what needs no training.

    uv run python benchmarks/emdiffuse.py FOLDER --part denoising        # noise of half the deviation, sections
    uv run python benchmarks/emdiffuse.py FOLDER --part interpolation    # three of four sections are missing, volumes
    uv run python benchmarks/emdiffuse.py FOLDER --part interpolation --steps 300 --scored 4     # a quick look
    uv run python benchmarks/emdiffuse.py FOLDER --part large            # memory and seams, with the networks in FOLDER

Networks `tiny` are trained by `cryobench train` in one thread, with 20 processor minutes each on the machine of the
recorded figures, on volumes `tissue` of seed 0, and scored on others. FOLDER keeps them: the same command continues,
and processor time is that of all parts of a training. Networks: `regression`; `diffusion`, of the image; `residual`,
diffusion of what the regression leaves.

Scores are means over sections or volumes that are independent of each other; +- is the half width of the 95% interval
(Student's t) of the mean difference to the row `regression`. Every row is given the true deviation of the noise, BM3D
too (the plugin cryobench-bm3d, if it is installed); the oracle of TV has for each section the weight with the least
error.

Large: an image of 2048 x 2048 pixels by `cryobench denoise`, and 64 sections of 256 x 256 to 253 by `cryobench
isotropic`, with the peak resident memory of the command. The data are mirrored parts of `tissue`, which have no edges.
The seam is the mean squared difference of neighbouring pixels where a window begins or ends over that elsewhere, 1
without one; beside it is that of windows side by side, without overlap.
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

import mrcfile
import numpy as np
import torch
from scipy.stats import t as student

import cryobench as cb
from cryobench.core import Source
from cryobench.core.windows import Windows
from cryobench.priors.conditional import SPREAD, Conditional
from cryobench.registry import installed
from cryobench.rng import Rng
from cryobench.solvers.conditional import Emdiffuse

RECIPE = ("--network", "tiny", "--patch", 64, "--batch", 8, "--lr", 1e-3, "--warmup", 100, "--ema", 0.998,
          "--validate-every", 250, "--sample-every", 10**6, "--checkpoint-every", 250, "--preload", "ram")  # fmt: skip
NOISE = 0.5
TASKS = {
    "denoising": ("tissue:0,count=8,depth=64,size=128,view=sections",
                  "tissue:50,count=1,depth=64,size=128,view=sections", f"noise={NOISE}"),
    "interpolation": ("tissue:0,count=12,depth=96,size=96", "tissue:50,count=1,depth=96,size=96", "gap=4,joint=true"),
}  # fmt: skip
"""Data, validation data and parameters of the objectives."""
SAMPLES = 1, 8
PEAK = """
import resource
from cryobench.cli import main
try:
    main()
finally:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
TV = tuple(float(x) for x in np.geomspace(0.03, 0.25, 6))
"""Weights among which the truth chooses for each section."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--part", choices=[*TASKS, "large"], required=True)
    parser.add_argument("--steps", type=int, default=2200, help="updates of each network")
    parser.add_argument("--residual-steps", type=int, help="those of `residual` [--steps]")
    parser.add_argument("--scored", type=int, default=0, help="sections or volumes [16 or 8]")
    parser.add_argument("--sampling-steps", type=int, default=20)
    parser.add_argument("--without", action="append", default=[], choices=("diffusion", "residual"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.part == "large":
        large(given.folder)
        return
    networks = {name: given.folder / f"{given.part}_{name}" for name in ("regression", "diffusion", "residual")
                if name not in given.without}  # fmt: skip
    for name, out in networks.items():
        steps = (given.residual_steps or given.steps) if name == "residual" else given.steps
        seconds = train(given.part, name, out, networks["regression"], steps)
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
    count = scored or 16
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


def large(folder: Path) -> None:
    """Print processor time, memory and seams of large images and volumes."""
    section = mirrored(first("tissue:2000,depth=8,size=256,view=sections"), 8)
    noise = np.random.default_rng(0).normal(size=section.shape)
    np.save(folder / "image.npy", (section + NOISE * section.std() * noise).astype(np.float32))
    volume = first("tissue:2000,depth=64,size=64")
    np.save(folder / "volume.npy", np.stack([mirrored(each, 4) for each in volume]))
    for name, options in (("regression", ""), ("diffusion", ",steps=5")):
        model = folder / f"denoising_{name}"
        solver = f"{'regression' if name == 'regression' else 'emdiffuse'}:model={model}{options}"
        out = folder / f"denoised_{name}"
        used = command("denoise", folder / "image.npy", "--solver", solver, "--out", out, "--force")
        edges = windows_at(section.shape, model)
        print(
            f"2048 x 2048, {name}{options}: {used}, seam {seam(mrcfile.read(out / 'image.mrc'), edges):.3f}", flush=True
        )
    print(f"    windows side by side: seam {seam(*side_by_side(np.load(folder / 'image.npy'), model)):.3f}")
    for name, options in (("regression", ""), ("residual", ",steps=5")):
        model = folder / f"interpolation_{name}"
        solver = f"{'regression' if name == 'regression' else 'emdiffuse'}:model={model}{options}"
        out = folder / f"isotropic_{name}.mrc"
        used = command("isotropic", folder / "volume.npy", "--factor", 4, "--solver", solver, "--out", out, "--force")
        found = mrcfile.read(out)
        edges = windows_at(found.shape[1:], model)
        seams = np.mean([seam(found[z], edges) for z in range(2, len(found), 4)])
        print(f"{' x '.join(map(str, found.shape))}, {name}{options}: {used}, seam {seams:.3f}", flush=True)


def first(spec: str) -> np.ndarray:
    """The first image or volume of a source."""
    source = installed().make("sources", spec)
    assert isinstance(source, Source)
    return source.open().read(0)


def mirrored(image: np.ndarray, times: int) -> np.ndarray:
    """An image and its mirror images about its edges, `times` along both axes."""
    return np.pad(image, [(0, (times - 1) * n) for n in image.shape], mode="reflect")


def command(*arguments: object) -> str:
    """Run a command of cryobench. Returns its processor time and peak resident memory."""
    call = [sys.executable, "-c", PEAK, *map(str, arguments), "--quiet"]
    before = children_seconds()
    done = subprocess.run(call, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    return f"{children_seconds() - before:.0f} processor seconds, peak {int(done.stdout.split()[-1]) / 1024:.0f} MiB"


def windows_at(shape: Sequence[int], model: Path) -> list[list[int]]:
    """Where windows begin or end along each axis."""
    network = Conditional(str(model))
    stride = network.config.stride
    windows = Windows(tuple(shape), network.patch, network.patch // 4, stride).windows
    return [sorted({end for window in windows for end in (window[axis].start, window[axis].stop)} - {0, n})
            for axis, n in enumerate(shape)]  # fmt: skip


def seam(image: np.ndarray, edges: Sequence[Sequence[int]]) -> float:
    """The mean squared difference across these edges over that across all others."""
    at, elsewhere = [], []
    for axis, places in enumerate(edges):
        squares = (np.diff(image.astype(np.float64), axis=axis) ** 2).mean(axis=1 - axis)
        chosen = np.isin(np.arange(1, image.shape[axis]), places)
        at.append(squares[chosen].mean())
        elsewhere.append(squares[~chosen].mean())
    return float(np.mean(at) / np.mean(elsewhere))


def side_by_side(image: np.ndarray, model: Path) -> tuple[np.ndarray, list[list[int]]]:
    """An image denoised by diffusion in windows of the size of the patches without overlap, and their edges."""
    network = Conditional(str(model))
    side = network.patch
    shape = tuple(n // side for n in image.shape)
    tiles = image.reshape(shape[0], side, shape[1], side).swapaxes(1, 2).reshape(-1, 1, 1, side, side)
    mean, deviation = image.mean(), image.std()
    solver = Emdiffuse(network, steps=5)
    found = []
    for number, tile in enumerate(tiles):
        condition = torch.from_numpy((tile - mean) / deviation) / SPREAD
        x, _ = solver._restored(condition, None, Rng(0, [str(number)]), "", None)
        found.append(x[0, 0].numpy())
    whole = np.stack(found).reshape(*shape, side, side).swapaxes(1, 2).reshape(image.shape)
    return whole, [list(range(side, n, side)) for n in image.shape]


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
