"""Overlap of scored images with the training data of priors."""

from __future__ import annotations

from collections.abc import Mapping

from cryobench.record import Record

IMAGES, STRUCTURE, NOTHING = "images", "structure", ""


def overlap(record: Record) -> str:
    """What the images of a cell and the training images of its priors have in common, as far as both origins are known.

    "images": structure, split and seed, so the training data may include these images, or a half of one of them by its
    digest. "structure": the structure, or
    one is a part of the other, but other images. "": nothing known.
    """
    scored = record.problem.get("origin", {})
    trained = record.problem.get("trained_on", [])
    halves = {origin["half"] for origin in trained if "half" in origin}
    if halves & set(record.problem.get("half_digests", [])):
        return IMAGES
    shared = [origin for origin in trained if _structures(origin) & _structures(scored)]
    if any(all(origin.get(name) == scored.get(name) for name in ("split", "seed")) for origin in shared):
        return IMAGES
    return STRUCTURE if shared else NOTHING


def _structures(origin: Mapping[str, str]) -> set[str]:
    """Names of whole structures: 6zu5 for its subunit 6zu5-large."""
    return {name.partition("-")[0] for name in origin.get("structure", "").split(",") if name}
