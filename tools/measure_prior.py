"""Measures the intensities of the images that the packaged prior was trained on, and writes them into its card.

python tools/measure_prior.py
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from cryobench.plan.dataset import open_stack
from cryobench.priors.model_folder import CARD
from cryobench.registry import installed
from cryobench.training.examples import StackExamples
from cryobench.training.images import Images

PATH = Path(__file__).parent.parent / "cryobench" / "priors" / "embedded" / CARD


def main() -> None:
    card = json.loads(PATH.read_text(encoding="utf-8"))
    settings = card["settings"]
    stacks = [StackExamples(open_stack(spec, {}, installed())) for spec in settings["data"]]
    images = Images(stacks, seed=settings["seed"], turns=settings["turns"], device=torch.device("cpu"), of="train")
    card["intensity"] = images.intensity
    PATH.write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    print(card["intensity"])


if __name__ == "__main__":
    main()
