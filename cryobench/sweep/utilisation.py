"""How the workers of a sweep spent their time."""

from __future__ import annotations

from collections.abc import Mapping

LABELS = {
    "network": "networks",
    "operators": "operators",
    "solver": "rest of the solvers",
    "metrics": "metrics",
    "setup": "set-up",
    "reading": "reading data",
    "writing": "writing results",
    "idle": "idle",
}
"""The categories, with their labels. Networks: forward passes; backward passes count as the rest of the solvers."""


def summary(seconds: Mapping[str, float]) -> str:
    """`networks 71%, operators 4%, ...`, the largest first; '' if all are zero."""
    total = sum(seconds.values())
    shares = {label: seconds.get(name, 0.0) / total for name, label in LABELS.items()} if total > 0 else {}
    shown = sorted(shares.items(), key=lambda item: -item[1])
    return ", ".join(f"{label} {share:.0%}" for label, share in shown if share >= 0.005)
