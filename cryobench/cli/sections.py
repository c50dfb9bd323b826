"""Help of commands with many options, in sections by purpose.

Typer's panels are drawn by Rich, whose import takes as long as the whole help; these sections are plain text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from typer.core import TyperCommand

OTHER = "Other options"
"""The section of what no section names, such as `--help`; the last one."""
_NAMES = 30
"""Characters of the column of names; a longer name has a line of its own."""

RUN = {
    "Problem": ("solver", "operator", "noise", "seed", "floor", "ceiling", "presets"),
    "Data": ("data", "images", "size", "as_stack", "data_root", "invert", "scaling", "halves", "protocol"),
    "Scoring": ("metric", "within", "by"),
    "Compute": ("device", "dtype", "batch", "force"),
    "Output": ("out", "save", "formats", "csv", "as_json", "columns", "wide", "quiet"),
}
"""For each section, the parameters of the command's function, in the order in which they are shown."""

SWEEP = {
    "Cells": ("dry_run", "retry_failed", "force", "shard", "time_limit", "memory_limit", "presets"),
    "Scoring": ("by",),
    "Compute": ("executor", "threads", "device", "batch"),
    "Output": ("out", "save", "publish", "formats", "csv", "as_json", "columns", "wide", "live", "quiet"),
}

TRAIN = {
    "Data": ("data", "validation", "target", "patch", "turns", "preload"),
    "Model": ("objective", "network", "levels", "warm_start"),
    "Optimisation": ("steps", "batch", "lr", "warmup", "ema", "clip", "patience", "seed"),
    "Compute": ("device", "bfloat16"),
    "Output": ("out", "validate_every", "sample_every", "checkpoint_every", "quiet"),
}

TUNE = {
    "Problem": ("solver", "operator", "noise", "problem_seed"),
    "Data": ("data", "images", "size", "scaling"),
    "Scoring": ("metric", "within", "by"),
    "Search": ("strategy", "grid_points", "trials", "evaluations", "prune", "seed"),
    "Compute": ("device", "dtype", "batch", "force"),
    "Output": ("preset", "presets", "csv_file", "as_json", "quiet"),
}


class _Sectioned(TyperCommand):
    sections: Mapping[str, Sequence[str]]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        section_of = {name: title for title, names in self.sections.items() for name in names}
        place_of = {name: place for place, name in enumerate(section_of)}
        found: dict[str, list[tuple[str, str]]] = {title: [] for title in ("Arguments", *self.sections, OTHER)}
        for param in sorted(self.get_params(ctx), key=lambda param: place_of.get(str(param.name), len(place_of))):
            record = param.get_help_record(ctx)
            if record is not None:
                argument = param.param_type_name == "argument"
                found["Arguments" if argument else section_of.get(str(param.name), OTHER)].append(record)
        width = min(_NAMES, max(len(name) for rows in found.values() for name, _ in rows))
        for title, rows in found.items():
            if rows:
                with formatter.section(title):
                    formatter.write_dl([(name.ljust(width), text) for name, text in rows], col_max=_NAMES)


def sectioned(sections: Mapping[str, Sequence[str]]) -> type[TyperCommand]:
    """The class of a command whose help has its arguments, then its options in sections."""
    return type("Sectioned", (_Sectioned,), {"sections": sections})
