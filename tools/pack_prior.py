"""Copies a trained prior into the package, in half precision: python tools/pack_prior.py FOLDER

FOLDER is the output of tools/train_embedded.sh. The loss, averaged over a hundred steps, is copied too and plotted to
docs/prior_loss.png; if the run started from the packaged weights, it is appended to their loss. The sample sheet of the
run is copied to docs/prior_samples.png.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from cryobench.priors.diffusion import EMBEDDED
from cryobench.priors.model_folder import find_model
from cryobench.priors.network import read_network
from cryobench.training.objectives.pipeline import write_pipeline

ROOT = Path(__file__).parent.parent
PACKAGED = ROOT / "cryobench" / "priors" / "embedded"
SAMPLES = ROOT / "docs" / "prior_samples.png"
LOSS = "loss.csv"
AVERAGED = 100  # steps


def pack(folder: Path) -> pd.DataFrame:
    """Write the pipeline, its card and its loss; returns the loss."""
    model = find_model(str(folder))
    losses = with_earlier(averaged(pd.read_csv(folder / LOSS)), model.card)
    shutil.rmtree(PACKAGED, ignore_errors=True)
    PACKAGED.mkdir()
    prediction = model.scheduler_config["prediction_type"]
    write_pipeline(read_network(model), prediction, PACKAGED, card=model.card, half=True)
    losses.to_csv(PACKAGED / LOSS, index=False, float_format="%.6g")
    (sheet,) = folder.glob(f"samples/step_{model.card['steps']:06d}.png")
    shutil.copyfile(sheet, SAMPLES)
    size = sum(path.stat().st_size for path in PACKAGED.rglob("*") if path.is_file())
    print(f"{PACKAGED.relative_to(ROOT)}: {size / 2**20:.1f} MiB")
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
    before = pd.read_csv(PACKAGED / LOSS)
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
    draw(pack(parser.parse_args().folder), ROOT / "docs" / "prior_loss.png")
