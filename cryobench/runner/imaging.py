"""What a solver of all images together is given of their table: not the truth, nor poses that it is to find."""

from __future__ import annotations

import dataclasses

from cryobench.core import TRUTH, HeterogeneitySolver, Imaging, Solver
from cryobench.physics.poses import ANGLES, CLASS, SHIFTS

_SHIFTS = (*SHIFTS, "rlnOriginX", "rlnOriginY")
"""In Å, and in pixels as RELION 3.0 has them."""


def seen_by(solver: Solver, imaging: Imaging) -> Imaging:
    """The imaging conditions without the columns of the table that the solver must not see.

    These are the true structure and place of a particle (`TRUTH`); of solvers of heterogeneity also the class, which a
    simulation knows, and the poses where the solver seeks them.
    """
    if imaging.table is None:
        return imaging
    hidden = {name for name in imaging.table.columns if name.startswith(TRUTH)}
    if isinstance(solver, HeterogeneitySolver):
        hidden |= {CLASS} | ({*ANGLES, *_SHIFTS} if solver.seeks_poses else set())
    return dataclasses.replace(imaging, table=imaging.table.drop(columns=list(hidden & set(imaging.table.columns))))
