"""The tables of docs/posteriors.md from the published board, leaderboards/posteriors.csv.

    uv run python tools/known_posteriors.py

Means over the comparisons of a group, for each solver that is in all of them. The gap also has its largest mean of a
comparison. Proportions are of all images of the group; their intervals in each comparison are in the board.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

BOARD = Path(__file__).parents[1] / "leaderboards" / "posteriors.csv"
GROUPS = {
    "field, noise 0.05": ("gaussian_field", "gaussian:0.05"),
    "field, exact measurements": ("gaussian_field", "none"),
    "mixture, noise 0.05": ("gaussian_mixture", "gaussian:0.05"),
}
COLUMNS = ["expected_gap", "coverage_energy", "hpd_coverage", "energy_distance"]


def main() -> None:
    """Print the tables."""
    frame = pd.read_csv(BOARD)
    frame = frame[frame["status"] == "ok"]
    seconds = (frame["seconds_per_image"] * frame["n_images"]).sum()
    print(f"{len(frame)} cells, {seconds / 60:.0f} minutes of the solvers")
    frame["solver"] = frame["solver"].str.replace(r",?prior=gaussian_\w+|,?samples=8", "", regex=True)
    frame["solver"] = frame["solver"].str.replace(":,", ":").str.removesuffix(":")
    for title, (data, noise) in GROUPS.items():
        part = frame[frame["data"].str.startswith(data) & (frame["noise"] == noise)]
        operators = part["operator"].nunique()
        groups = part.groupby("solver")
        means = groups[[*COLUMNS, "nfe"]].mean().assign(largest=groups["expected_gap"].max(), n=groups.size())
        means = means[means["n"] == operators].sort_values("expected_gap")
        print(f"\n{title}, {operators} operators\n")
        print("| solver | gap, dB (largest) | `coverage_energy` | `hpd_coverage` | `energy_distance` | evaluations |")
        print("|---|---|---|---|---|---|")
        for solver, row in means.iterrows():
            rates = [text(row[name], 2) for name in COLUMNS[1:3]]
            cells = [f"`{solver}`", f"{row['expected_gap']:.2f} ({row['largest']:.2f})", *rates,
                     text(row["energy_distance"], 3), f"{row['nfe']:.0f}"]  # fmt: skip
            print(f"| {' | '.join(cells)} |")


def text(value: float, decimals: int) -> str:
    """A number, or nothing where it was not measured."""
    return "" if pd.isna(value) else f"{value:.{decimals}f}"


if __name__ == "__main__":
    main()
