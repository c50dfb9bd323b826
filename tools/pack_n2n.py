"""Copies a trained denoising network into the package, in half precision: python tools/pack_n2n.py FOLDER

FOLDER is the output of tools/train_n2n.sh. Its loss is copied too. The files take less than 3 MB.
"""

from __future__ import annotations

import argparse
import shutil
from functools import partial
from pathlib import Path

from cryobench.networks.files import CONFIG, WEIGHTS, config_values, read_json, read_network
from cryobench.priors.denoiser import PACKAGED_FOLDER
from cryobench.priors.model_folder import CARD
from cryobench.training.export import README, write_json, write_model, write_weights

LOSS = "loss.csv"
MAX_BYTES = 3_000_000


def pack(folder: Path) -> int:
    """Write the network, its card and its loss. Returns their size in bytes."""
    network, card = read_network(folder), read_json(folder / CARD)
    shutil.rmtree(PACKAGED_FOLDER, ignore_errors=True)
    PACKAGED_FOLDER.mkdir()
    files = {WEIGHTS: partial(write_weights, network, half=True),
             CONFIG: partial(write_json, config_values(network.config))}  # fmt: skip
    write_model(PACKAGED_FOLDER, files, card, (folder / README).read_text(encoding="utf-8"))
    shutil.copyfile(folder / LOSS, PACKAGED_FOLDER / LOSS)
    return sum(path.stat().st_size for path in PACKAGED_FOLDER.iterdir())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    size = pack(parser.parse_args().folder)
    print(f"{PACKAGED_FOLDER}: {size / 1e6:.2f} MB")
    if size > MAX_BYTES:
        raise SystemExit(f"more than {MAX_BYTES / 1e6:g} MB")
