"""Time the start-up of `cryobench --help`, `list` and `--version`, and of `list` with 200 plugins.

uv run python benchmarks/startup.py
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COMMANDS = ("--help", "list", "--version")
PLUGINS = 200


def seconds(arguments: list[str], path: str = "") -> float:
    start = time.perf_counter()
    subprocess.run(arguments, check=True, capture_output=True, env=os.environ | {"PYTHONPATH": path})
    return time.perf_counter() - start


def install_plugins(site: Path) -> None:
    """Write the metadata of 200 distributions of one solver each, as pip would install it."""
    for i in range(PLUGINS):
        info = site / f"cryobench_dummy_{i}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: cryobench-dummy-{i}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[cryobench.solvers]\ndummy_{i} = dummy_{i}:Dummy\n")


def main() -> None:
    bare = statistics.median(seconds([sys.executable, "-c", "pass"]) for _ in range(7))
    print(f"{'python -c pass':<22} {bare:.3f} s")
    for command in COMMANDS:
        median = statistics.median(seconds([sys.executable, "-m", "cryobench", command]) for _ in range(7))
        print(f"{'cryobench ' + command:<22} {median:.3f} s")
    with tempfile.TemporaryDirectory() as site:
        install_plugins(Path(site))
        listing = [sys.executable, "-m", "cryobench", "list"]
        shown = subprocess.run(
            listing, check=True, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": site}
        )
        assert shown.stdout.count("cryobench-dummy-") == PLUGINS
        median = statistics.median(seconds(listing, site) for _ in range(7))
        print(f"{f'... with {PLUGINS} plugins':<22} {median:.3f} s")


if __name__ == "__main__":
    main()
