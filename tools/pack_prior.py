"""Puts a trained prior into the package, in half precision: python tools/pack_prior.py FOLDER

FOLDER is what tools/train_embedded.sh has made. The loss curve goes to docs/prior_loss.png.
"""

from __future__ import annotations

import argparse
import csv
import shutil
from pathlib import Path

from diffusers.models.unets.unet_2d import UNet2DModel
from matplotlib.figure import Figure

from cryobench.priors.diffusion import CARD
from cryobench.training.export import write_pipeline

ROOT = Path(__file__).parent.parent
PACKAGED = ROOT / "cryobench" / "priors" / "embedded"


def pack(folder: Path) -> None:
    """Write the pipeline, its card and its loss curve."""
    network = UNet2DModel.from_pretrained(folder / "unet")
    prediction = _prediction(folder)
    shutil.rmtree(PACKAGED, ignore_errors=True)
    PACKAGED.mkdir()
    write_pipeline(network, prediction, PACKAGED, half=True)
    for name in (CARD, "README.md", "loss.csv"):
        shutil.copy(folder / name, PACKAGED / name)
    size = sum(path.stat().st_size for path in PACKAGED.rglob("*") if path.is_file())
    print(f"{PACKAGED.relative_to(ROOT)}: {size / 2**20:.1f} MiB")


def _prediction(folder: Path) -> str:
    import json

    return json.loads((folder / "scheduler" / "scheduler_config.json").read_text())["prediction_type"]


def draw(losses: Path, path: Path) -> None:
    """The training loss, averaged over a hundred steps, and the validation loss."""
    with losses.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axis = figure.subplots()
    training = [(int(row["step"]), float(row["loss"])) for row in rows if row["loss"]]
    width = min(100, len(training))
    means = [sum(loss for _, loss in training[i : i + width]) / width for i in range(0, len(training) - width, width)]
    axis.plot([training[i + width // 2][0] for i in range(0, len(training) - width, width)], means, label="training")
    validated = [(int(row["step"]), float(row["validation_loss"])) for row in rows if row["validation_loss"]]
    axis.plot(*zip(*validated, strict=True), label="validation, averaged weights")
    axis.set(xlabel="step", ylabel="mean squared error of v", yscale="log")
    axis.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    pack(given.folder)
    draw(given.folder / "loss.csv", ROOT / "docs" / "prior_loss.png")
