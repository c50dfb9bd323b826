"""Comparisons: groups of cells that can be ranked against each other."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pyarrow as pa

from cryobench.leaderboard.cells import texts


def comparisons(table: pa.Table) -> tuple[np.ndarray, list[str]]:
    """The number [rows] of the comparison of each cell, in order of first appearance, and the data label of each
    comparison.

    Cells of a comparison have the same operator, noise, images, seed, dtype and evaluated region. Images with the same
    content are the same data set, labelled as where they appear first; their order does not matter.
    """
    codes, distinct = {}, {}
    for name in ("operator", "noise", "data", "digest", "images", "dtype", "within"):
        codes[name], distinct[name] = texts(table, name)
    digests = np.array(distinct["digest"], dtype=object)[codes["digest"]]
    first = pd.Series(codes["data"]).groupby(codes["digest"]).transform("first").to_numpy()
    codes["data"] = np.where(digests != "", first, codes["data"])
    sets = [tuple(sorted(map(str, json.loads(text)))) for text in distinct["images"]]
    codes["images"] = pd.factorize(pd.Series(sets, dtype=object))[0][codes["images"]]
    keys = pd.DataFrame(codes | {"seed": table["seed"].to_numpy()})
    numbers = keys.groupby(list(keys.columns), sort=False).ngroup().to_numpy()
    firsts = np.unique(numbers, return_index=True)[1]
    labels = np.array(distinct["data"], dtype=object)[codes["data"]]
    return numbers, data_labels(labels[firsts].tolist(), digests[firsts].tolist())


def data_labels(labels: Sequence[str], digests: Sequence[str]) -> list[str]:
    """The labels. If a label has several digests, `#` and the first digits of the digest are appended: four, or as many
    as distinguish them."""
    known: dict[str, list[str]] = {}
    for label, digest in dict.fromkeys(zip(labels, digests, strict=True)):
        if digest:
            known.setdefault(label, []).append(digest.rpartition(":")[2])
    marks = {}
    for label, found in known.items():
        length = 4
        while length < max(map(len, found)) and len({digest[:length] for digest in found}) < len(found):
            length += 1
        marks |= {(label, digest): f"#{digest[:length]}" for digest in found if len(found) > 1}
    pairs = zip(labels, digests, strict=True)
    return [label + marks.get((label, digest.rpartition(":")[2]), "") for label, digest in pairs]
