"""Whether a prior was scored on what it was trained on."""

from __future__ import annotations

from collections.abc import Mapping

from cryobench.record import Record

IMAGES, STRUCTURE, NOTHING = "images", "structure", ""


def overlap(record: Record) -> str:
    """What the images of a cell share with those its priors were trained on, as far as both origins are known.

    "images": the same structure, split and seed, so that the very images may be among them. "structure": other images
    of the same structure, of a part of it, or of what it is a part of. "": nothing that is known of.
    """
    scored = record.problem.get("origin", {})
    trained = record.problem.get("trained_on", [])
    shared = [origin for origin in trained if _structures(origin) & _structures(scored)]
    if any(_drawn(origin) == _drawn(scored) for origin in shared):
        return IMAGES
    return STRUCTURE if shared else NOTHING


def _structures(origin: Mapping[str, str]) -> set[str]:
    """The whole structures: 6zu5 for its subunit 6zu5-large."""
    return {name.partition("-")[0] for name in origin.get("structure", "").split(",") if name}


def _drawn(origin: Mapping[str, str]) -> tuple[str | None, ...]:
    return origin.get("split"), origin.get("seed")
