"""Pictures of reconstructions, still and moving, in one style.

Matplotlib and Pillow are imported only when one is drawn, and Matplotlib's global state is never touched.
"""

from __future__ import annotations

from cryobench.figures.curves import common_size, ring_correlations
from cryobench.figures.moving import animation
from cryobench.figures.panels import error_maps, panel, sheet
from cryobench.figures.views import Views, read_views, write_views

__all__ = [
    "Views",
    "animation",
    "common_size",
    "error_maps",
    "panel",
    "read_views",
    "ring_correlations",
    "sheet",
    "write_views",
]
