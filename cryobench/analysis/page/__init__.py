"""The page of an analysis: one HTML file (`figures.page`).

It shows the latents in a plane, the central sections of the maps at the states of clusters, and the traversals. A click
on a particle shows the map that was made nearest to its latent, and says which: a map of every particle would not fit.
Sections have one grey scale, so that maps can be compared.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np

from cryobench import environment
from cryobench.analysis.latents import Clusters
from cryobench.figures.page import assembled
from cryobench.results.heterogeneity import About

MOST = 20_000
"""Particles that are drawn; of more, an even selection."""
LARGEST = 128
"""Pixels a side of the sections; larger maps are shrunk."""
GREYS = (0.5, 99.9)
"""Percentiles of the sections of all maps that are black and white."""
_DIGITS = 5


@dataclass(frozen=True, eq=False)
class State:
    """A map. name: cluster_N, pcN_M/POINT or map. latent: [d]. sections: across x, y and z at voxel D // 2,
    [3, s, s]."""

    name: str
    latent: np.ndarray
    sections: np.ndarray

    @staticmethod
    def of(name: str, latent: np.ndarray, volume: np.ndarray) -> State:
        """The state with the central sections of its map [D, D, D] as z, y, x."""
        c = len(volume) // 2
        planes = [volume[:, :, c], volume[:, c, :], volume[c]]
        return State(name, latent, np.stack([_shrunk(plane) for plane in planes]).astype(np.float32))


def to_page(
    numbers: dict[str, Any],
    states: Sequence[State],
    views: Sequence[tuple[str, np.ndarray]],
    clusters: Clusters | None,
    latents: np.ndarray,
    about: About,
) -> str:
    """The page. numbers: of analysis.json. views: name and places [N, 1 or 2] of particles. latents: [N, d]."""
    shown = np.arange(0, len(latents), -(-len(latents) // MOST))
    data: dict[str, Any] = {
        "about": {name: numbers[name] for name in ("solver", "particles", "dimensions", "side", "poses_found")},
        "pixel": about.pixel_size,
        "method": numbers.get("method"),
        "version": environment.version(),
        "states": [{"name": state.name, "sections": own} for state, own in zip(states, _pictures(states), strict=True)],
        "clusters": [],
        "traversals": [
            {"folder": own["folder"], "variance": own["variance"], "coordinates": _short(np.array(own["coordinates"]))}
            for own in numbers.get("components", [])
        ],
        "points": None,
    }
    if clusters is not None:
        data["clusters"] = [{"size": own["particles"], "image": own["image"]} for own in numbers["clusters"]]
        data["points"] = {
            "image": [about.images[place] for place in shown],
            "cluster": clusters.labels[shown].tolist(),
            "nearest": _nearest(latents[shown], np.stack([state.latent for state in states])).tolist(),
            "views": [
                {"name": name, "axes": _axes(name, places.shape[1]),
                 "places": [_short(column[shown]) for column in places.T],
                 "states": [_short(column[clusters.nearest]) for column in places.T]}
                for name, places in views
            ],
        }  # fmt: skip
    return assembled(
        _part("page.html"), _part("page.css"), f'(() => {{\n"use strict";\n{_part("page.js")}\n}})();', data
    )


def _axes(view: str, count: int) -> list[str]:
    return [f"{'UMAP ' if view == 'UMAP' else 'PC'}{number}" for number in range(1, count + 1)]


def _nearest(latents: np.ndarray, states: np.ndarray) -> np.ndarray:
    """The state nearest to each latent; the first of equal ones."""
    from scipy.spatial.distance import cdist

    return cdist(latents, states).argmin(axis=1)


def _pictures(states: Sequence[State]) -> list[list[str]]:
    """The sections of each state, as PNG in base64."""
    all_sections = np.stack([state.sections for state in states])
    low, high = np.percentile(all_sections, GREYS)
    levels = np.round(255 * ((all_sections - low) / ((high - low) or 1.0)).clip(0, 1)).astype(np.uint8)
    return [[_png(section) for section in own] for own in levels]


def _png(pixels: np.ndarray) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="png", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _shrunk(plane: np.ndarray) -> np.ndarray:
    """A section of at most `LARGEST` pixels a side, by means of areas."""
    if len(plane) <= LARGEST:
        return plane
    from PIL import Image

    image = Image.fromarray(plane.astype(np.float32))
    return np.asarray(image.resize((LARGEST, LARGEST), Image.Resampling.BOX))


def _short(values: np.ndarray) -> list[float]:
    """Numbers for JSON to `_DIGITS` significant digits."""
    return [float(f"{value:.{_DIGITS}g}") for value in values.tolist()]


def _part(name: str) -> str:
    return (files(__name__) / "static" / name).read_text(encoding="utf-8")
