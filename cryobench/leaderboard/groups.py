"""Which cells may be ranked against each other."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from cryobench.leaderboard.cells import texts


class Comparison(NamedTuple):
    """What two cells must share to be ranked against each other."""

    operator: str
    noise: str
    data: str
    digest: str
    seed: int
    images: tuple[str, ...]
    dtype: str
    within: str


def comparisons(table: pa.Table) -> tuple[np.ndarray, list[Comparison]]:
    """The number [rows] of the comparison that each cell belongs to, and the comparisons, in order of first appearance.

    Images of equal content are one data set, of the first label seen; their order does not matter.
    """
    names = ("operator", "noise", "data", "digest", "images", "dtype", "within")
    codes, distinct = {}, {}
    for name in names:
        codes[name], distinct[name] = texts(table, name)
    codes["data"] = _first_labels(codes["data"], codes["digest"], distinct["digest"])
    sets = [tuple(sorted(map(str, json.loads(text)))) for text in distinct["images"]]
    places = {images: place for place, images in enumerate(dict.fromkeys(sets))}
    codes["images"] = np.array([places[images] for images in sets], dtype=np.int64)[codes["images"]]
    distinct["images"] = list(places)
    keys = pd.DataFrame(codes | {"seed": table["seed"].to_numpy()})
    numbers = keys.groupby(list(keys.columns), sort=False).ngroup().to_numpy()
    firsts = keys.iloc[np.unique(numbers, return_index=True)[1]].to_dict(orient="records")
    return numbers, [
        Comparison(**{name: distinct[name][first[name]] for name in names}, seed=first["seed"]) for first in firsts
    ]


def _first_labels(labels: np.ndarray, digests: np.ndarray, distinct: Sequence[str]) -> np.ndarray:
    """Label codes [rows] where equal digests have the label that was seen first; no digest, no equality."""
    first = pd.Series(labels).groupby(digests).transform("first").to_numpy()
    known = np.array([bool(digest) for digest in distinct], dtype=bool)
    return np.where(known[digests], first, labels)


def data_labels(found: Sequence[Comparison]) -> list[str]:
    """The data label of each comparison, with the start of the digest where one label names two data sets."""
    digests: dict[str, list[str]] = {}
    for label, digest in dict.fromkeys((comparison.data, comparison.digest) for comparison in found):
        if digest:
            digests.setdefault(label, []).append(digest)
    marks = {
        (label, digest): _mark(digest, others) for label, others in digests.items() for digest in others
    }  # fmt: skip
    return [comparison.data + marks.get((comparison.data, comparison.digest), "") for comparison in found]


def _mark(digest: str, digests: Sequence[str]) -> str:
    """'' for the only digest of a label, else '#' and its first hexadecimal digits: four, or more until they differ."""
    if len(digests) < 2:
        return ""
    hexadecimal = [other.rpartition(":")[2] for other in digests]
    length = 4
    while length < max(map(len, hexadecimal)) and len({other[:length] for other in hexadecimal}) < len(hexadecimal):
        length += 1
    return "#" + digest.rpartition(":")[2][:length]
