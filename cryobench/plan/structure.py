"""The plans of `cryobench structure`: particles of one structure in several numbers, and the controls."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from cryobench.errors import CryobenchError, ParameterError
from cryobench.maps.particles import particles_of
from cryobench.plan import grid
from cryobench.plan.dataset import source_spec
from cryobench.plan.grid import Loaded, Plan, Request
from cryobench.registry import Registry
from cryobench.spec import fields_of

NOISE = "noise"
"""The control of images without particles; another is the name of a structure."""
PARTICLES, OTHER, FULL = "particles", "other", "full"
"""Parts of the cells of a table, besides `NOISE`: of the particles, of those of another structure, and of all pixels of
the particles, which no operator has compressed."""
IDENTITY, FLOOR = "identity", "pinv"
"""The operator and the solver of the row of all pixels."""


@dataclass(frozen=True)
class StructureRequest:
    """request: of the particles. particles: numbers of them, ascending; none: all. controls: `NOISE` or structures.
    stated: whether the controls were asked for, so that it is an error if the source has none. full: whether to add the
    cells of all pixels."""

    request: Request
    particles: Sequence[int]
    controls: Sequence[str]
    stated: bool
    full: bool


@dataclass(frozen=True)
class StructurePlan:
    """plan: of cells that have the same part in the table, `PARTICLES`, `NOISE`, `OTHER` or `FULL`."""

    part: str
    plan: Plan


def plans(request: StructureRequest, registry: Registry) -> tuple[list[StructurePlan], list[str]]:
    """The checked plans, and why controls are left out, for the user.

    Raises a `CryobenchError` before any work for an invalid request.
    """
    base, loaded = request.request, Loaded()
    others = [control for control in request.controls if control != NOISE]
    if len(others) > 1:
        raise ParameterError(f"--control takes one other structure, got {' and '.join(others)}; run them separately")
    (data,) = base.data
    numbers = [f"0:{count}" for count in request.particles] or ["0:"]
    found = []
    for images in numbers:
        own = dataclasses.replace(base, images=images)
        found.append(StructurePlan(PARTICLES, grid.plan(own, registry, loaded)))
        if request.full:
            whole = dataclasses.replace(own, operators=(IDENTITY,), solvers=(FLOOR,), floor=False)
            found.append(StructurePlan(FULL, grid.plan(whole, registry, loaded)))
    for dataset in {id(cell.dataset): cell.dataset for cell in found[0].plan.cells}.values():
        particles_of(dataset.imaging, "structure")  # before any work: no map could be made of others
    notes: list[str] = []
    for control in request.controls:
        try:
            spec = _control(data, control, base.data_options, registry)
        except CryobenchError as error:
            if request.stated:
                raise
            notes.append(f"without the control {control}: {error}")
            continue
        own = dataclasses.replace(base, images=numbers[-1], data=(spec,), data_options={}, save=())
        found.append(StructurePlan(NOISE if control == NOISE else OTHER, grid.plan(own, registry, loaded)))
    return found, notes


def _control(data: str, control: str, options: dict[str, str], registry: Registry) -> str:
    """The spec of the data of a control."""
    source = registry.make("sources", source_spec(data, options, registry))
    known = {field.name for field in fields_of(type(source))}
    name = "empty" if control == NOISE else "structure"
    if name not in known:
        raise ParameterError(f"{data} is not simulated, and has no control {control}; give --data simulate:..., or "
                             "--no-controls")  # fmt: skip
    value = True if control == NOISE else control
    return str(registry.spec_of(dataclasses.replace(source, **{name: value})))
