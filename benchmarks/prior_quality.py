"""Quality of a diffusion prior on structures that it was not trained on: uv run python benchmarks/prior_quality.py

Two measures, each on simulated particles of held-out structures (6zu5 and its subunits, and 1aon and 7pbl where
../shared/data has them):

- `hqs` against the ceiling, in dB of PSNR to the measured image: particles at snr 2, sum pooling by K = 2 to 32 with
  random binary masks at C = 4, exact measurements. The difference is paired by image; its mean over K has a 95%
  bootstrap interval over images.
- denoising clean particles with white noise of sigma 0.1, 0.3 and 1 against TV whose weight has the highest mean PSNR,
  which can be chosen only if the clean image is known; PSNR in dB, range 2.

--prior is any prior of `hqs`: embedded (default) or a folder. Cells saved in --out are reused.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

import cryobench as cb
from cryobench.io.scaling import minmax
from cryobench.leaderboard.statistics.bootstrap import bootstrap_interval
from cryobench.priors.diffusion import Diffusion
from cryobench.priors.tv import TotalVariation
from cryobench.record import Record
from cryobench.sources.simulate import Simulate

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
BLOCKS = (2, 4, 8, 16, 32)
SIGMAS = (0.1, 0.3, 1.0)
WEIGHTS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.85, 1.0, 1.2, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Weights of TV over sigma."""
HELD_OUT = {"6zu5": "6zu5+6zu5-large+6zu5-small"} | {
    path.name.split(".")[0].removeprefix("pdb"): str(path)
    for path in (SHARED / "1aon.pdb.gz", SHARED / "pdb7pbl.pdb")
    if path.exists()
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prior", default="embedded", help="embedded, or a folder")
    parser.add_argument("--data", action="append", choices=HELD_OUT, help="can be repeated; default: all")
    parser.add_argument(
        "--structure", action="append", help="another structure, as `simulate` names it, in their place"
    )
    parser.add_argument("--block", action="append", type=int, help="K; can be repeated; default: 2 to 32")
    parser.add_argument("--images", type=int, default=16, help="of each structure; default: 16")
    parser.add_argument(
        "--no-denoising", action="store_true", help="only hqs against the ceiling, which takes less time"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("runs/prior-quality"))
    given = parser.parse_args()
    structures = {name: HELD_OUT[name] for name in given.data or HELD_OUT}
    if given.structure:
        structures = {structure: structure for structure in given.structure}
    blocks = given.block or BLOCKS
    torch.set_num_threads(1)
    for name, structure in structures.items():
        if not given.no_denoising:
            denoising(name, structure, given.prior, given.images, given.device)
        against_ceiling(name, structure, given.prior, blocks, given.images, given.device, given.out)


def against_ceiling(
    name: str, structure: str, prior: str, blocks: Sequence[int], images: int, device: str, out: Path
) -> None:
    """Print the PSNR of `hqs`, the ceiling and the floor for each K, and hqs - ceiling paired by image."""
    differences = []
    for block in blocks:
        records = cb.run(
            ["pinv", f"hqs:prior={prior}"], f"sumpool:{block},count={block * block // 4}",
            data=f"simulate:{structure},snr=2,count=1000", images=f"0:{images}", metrics=("psnr",), device=device,
            out=out, ceiling=True,
        )  # fmt: skip
        values = {record.solver.split(":")[0]: psnr(record) for record in records}
        differences.append(values["hqs"] - values["ceiling"])
        means = ", ".join(f"{solver} {found.mean():.2f}" for solver, found in values.items())
        print(f"{name}, K = {block}: {means}; hqs - ceiling {differences[-1].mean():+.2f} dB", flush=True)
    over_blocks = np.mean(differences, axis=0)
    low, high = bootstrap_interval(over_blocks.tolist())
    interval = "" if low is None or high is None else f" [{low:+.2f}, {high:+.2f}]"
    print(f"{name}, mean over K: hqs - ceiling {over_blocks.mean():+.2f}{interval} dB", flush=True)


def psnr(record: Record) -> np.ndarray:
    """PSNR of each image of a record, whose cell must have run."""
    if "psnr" not in record.values:
        raise SystemExit(f"{record.solver}: {record.reason}")
    return np.array(record.values["psnr"], dtype=float)


def denoising(name: str, structure: str, prior: str, images: int, device: str) -> None:
    """Print the mean PSNR of the prior's denoiser and of TV for each noise level."""
    stack = Simulate(structure, snr=None, seed=7).open()
    clean = torch.from_numpy(np.stack([minmax(image := stack.read(i), "").apply(image) for i in range(images)]))[
        :, None
    ]
    model = Diffusion(prior).load(device)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    for sigma in SIGMAS:
        z = clean + sigma * noise
        with torch.no_grad():
            ours = decibels(model.denoise(z.to(device), sigma).cpu(), clean)
        best = best_of_tv(z, clean, sigma)
        print(f"{name}, sigma {sigma:g}: prior {ours:.2f}, tv {best:.2f}, difference {ours - best:+.2f} dB",
              flush=True)  # fmt: skip


def best_of_tv(z: torch.Tensor, clean: torch.Tensor, sigma: float) -> float:
    """The highest mean PSNR of TV over its weight. Weights are tried in ascending order until it falls."""
    best = -np.inf
    for factor in WEIGHTS:
        found = decibels(TotalVariation().prox(z, torch.full((len(z), 1, 1, 1), sigma * factor)), clean)
        if found < best - 0.02:
            return best
        best = max(best, found)
    raise SystemExit(f"the best weight of TV at sigma {sigma:g} is at the end of the range")


def decibels(x: torch.Tensor, truth: torch.Tensor) -> float:
    """Mean PSNR, range 2."""
    return float((10 * torch.log10(4 / (x - truth).square().mean((1, 2, 3)))).mean())


if __name__ == "__main__":
    main()
