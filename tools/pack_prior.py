"""Copies a trained prior into the package, in half precision: python tools/pack_prior.py FOLDER [--name folds]

FOLDER is the output of tools/train_embedded.sh, or of tools/train_folds.py. The loss, averaged over a hundred steps, is
copied too and plotted to docs/prior_loss.png; if the run started from the packaged weights, it is appended to their
loss. The sample sheet of the run is copied to docs/prior_samples.png. Those of `folds` are docs/folds_loss.png and
docs/folds_samples.png.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from cryobench.priors.diffusion import EMBEDDED, PACKAGED
from cryobench.priors.model_folder import find_model
from cryobench.priors.network import read_network
from cryobench.training.objectives.pipeline import write_pipeline

ROOT = Path(__file__).parent.parent
PRIORS = ROOT / "cryobench" / "priors"
LOSS = "loss.csv"
AVERAGED = 100  # steps


def pack(folder: Path, target: Path, samples: Path) -> pd.DataFrame:
    """Write the pipeline, its card and its loss to `target`, and the sample sheet; returns the loss."""
    model = find_model(str(folder))
    losses = with_earlier(averaged(pd.read_csv(folder / LOSS)), model.card)
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    prediction = model.scheduler_config["prediction_type"]
    write_pipeline(read_network(model), prediction, target, card=model.card, half=True)
    losses.to_csv(target / LOSS, index=False, float_format="%.6g")
    (sheet,) = folder.glob(f"samples/step_{model.card['steps']:06d}.png")
    shutil.copyfile(sheet, samples)
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    print(f"{target.relative_to(ROOT)}: {size / 2**20:.1f} MiB")
    return losses


def averaged(losses: pd.DataFrame) -> pd.DataFrame:
    """A row per hundred steps, numbered by the last of them: the mean training loss and the last validation loss."""
    rows = losses.groupby((losses["step"] + AVERAGED - 1) // AVERAGED * AVERAGED)
    return rows.agg(loss=("loss", "mean"), validation_loss=("validation_loss", "last")).reset_index()


def with_earlier(losses: pd.DataFrame, card: Mapping[str, Any]) -> pd.DataFrame:
    """These losses, preceded by those of the packaged weights if the run started from them."""
    if card["settings"]["warm_start"] != EMBEDDED:
        return losses
    done = sum(run["steps"] for run in card["before"])
    before = pd.read_csv(PRIORS / EMBEDDED / LOSS)
    return pd.concat([averaged(before[before["step"] <= done]), losses.assign(step=losses["step"] + done)])


def draw(losses: pd.DataFrame, path: Path) -> None:
    """The training loss and the validation loss over the steps."""
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axis = figure.subplots()
    for name, label in (("loss", "training"), ("validation_loss", "validation, averaged weights")):
        known = losses[losses[name].notna()]
        axis.plot(known["step"], known[name], label=label)
    axis.set(xlabel="step", ylabel="mean squared error of v", yscale="log")
    axis.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--name", choices=PACKAGED, default=EMBEDDED)
    given = parser.parse_args()
    plots = ROOT / "docs" / ("prior" if given.name == EMBEDDED else given.name)
    draw(pack(given.folder, PRIORS / given.name, Path(f"{plots}_samples.png")), Path(f"{plots}_loss.png"))
