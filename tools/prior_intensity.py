"""Writes the mean and deviation of the packaged prior's training images into its card: python tools/prior_intensity.py

`cryobench train` does it for new priors; the packaged one was trained before.
"""

from __future__ import annotations

import json

import torch
from pack_prior import PACKAGED

from cryobench.plan.dataset import open_stack
from cryobench.priors.model_folder import CARD
from cryobench.registry import installed
from cryobench.training.images import Images

if __name__ == "__main__":
    path = PACKAGED / CARD
    card = json.loads(path.read_text(encoding="utf-8"))
    stacks = [open_stack(text, {}, installed()) for text in card["settings"]["data"]]
    images = Images(stacks, seed=0, turns=False, device=torch.device("cpu"), of="intensity")
    card = {"image_shape": card.pop("image_shape"), "intensity": images.intensity} | card
    path.write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    print(images.intensity)
