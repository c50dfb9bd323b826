"""Figures and animations of reconstructions.

Lives here: panels, error maps, curves, animations, and thumbnails. Matplotlib and Pillow are imported when a figure is
drawn, and Matplotlib's global state is never changed. May be imported by the runner and everything above.
"""

from __future__ import annotations

from cryobench.figures.curves import common_size, half_map_correlations, ring_correlations
from cryobench.figures.gif import animation
from cryobench.figures.panels import error_maps, panel, sheet
from cryobench.figures.views import Views, read_views, write_views

__all__ = [
    "Views",
    "animation",
    "common_size",
    "error_maps",
    "half_map_correlations",
    "panel",
    "read_views",
    "ring_correlations",
    "sheet",
    "write_views",
]
