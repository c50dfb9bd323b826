"""Latents of particles in a plane, or along a line, with clusters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cryobench.figures.style import BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION, figure_axes, save

COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
"""Of clusters, in this order and again from the first; their numbers distinguish those of one colour."""
_BINS = 60
_MOST = 20_000
"""Points that are drawn; of more, an even selection."""


def latents_figure(
    places: np.ndarray, labels: np.ndarray | None, marked: np.ndarray | None, names: Sequence[str], path: Path
) -> None:
    """Write a figure of N particles. places: [N, 2], or [N, 1] for a histogram. labels: clusters from 1, [N], None
    without. marked: the particle of each cluster that gives its map, [k]. names: of the axes."""
    figure, ((axis,),) = figure_axes(1, 1, (5.2, 4.2))
    numbers = [] if labels is None else list(range(1, int(labels.max()) + 1))
    groups = [np.arange(len(places))] if labels is None else [np.flatnonzero(labels == number) for number in numbers]
    if places.shape[1] == 1:
        edges = np.histogram_bin_edges(places[:, 0], bins=_BINS)
        parts = [places[group, 0] for group in groups]
        axis.hist(parts, bins=list(edges), stacked=True, color=[_colour(number) for number in range(len(groups))])
        axis.set(xlabel=names[0], ylabel="particles")
    else:
        step = -(-len(places) // _MOST)
        size = float(np.clip(4e3 / len(places), 2, 14))
        for number, group in enumerate(groups):
            shown = group[::step]
            axis.scatter(*places[shown].T, s=size, color=_colour(number), alpha=0.7, linewidths=0, rasterized=True)
        axis.set(xlabel=names[0], ylabel=names[1])
    for number, particle in zip(numbers, [] if marked is None else marked, strict=marked is not None):
        x = places[particle, 0]
        y = 0.0 if places.shape[1] == 1 else places[particle, 1]
        box = {"facecolor": "white", "edgecolor": _colour(number - 1), "boxstyle": "round,pad=0.2"}
        axis.annotate(str(number), (x, y), ha="center", va="center", fontsize=8, bbox=box)
    axis.spines[["top", "right"]].set_visible(False)
    save(figure, path)


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]
