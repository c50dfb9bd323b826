"""What the time of a sweep's workers went into."""

from __future__ import annotations

from collections.abc import Mapping

WORDS = {
    "network": "networks",
    "operators": "operators",
    "solver": "rest of the solvers",
    "metrics": "metrics",
    "setup": "set-up",
    "reading": "reading data",
    "writing": "writing results",
    "idle": "idle and in between",
}
"""What is told apart. networks: forward passes, of which backward ones are in the rest of the solvers."""


def told(seconds: Mapping[str, float]) -> str:
    """`networks 71%, operators 4%, ...`, the largest first; '' where nothing took any time."""
    total = sum(seconds.values())
    shares = {word: seconds.get(name, 0.0) / total for name, word in WORDS.items()} if total > 0 else {}
    shown = sorted(shares.items(), key=lambda item: -item[1])
    return ", ".join(f"{word} {share:.0%}" for word, share in shown if share >= 0.005)
