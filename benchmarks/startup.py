"""Time the commands that must answer at once: `cryobench --help` and `cryobench list`.

uv run python benchmarks/startup.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

COMMANDS = ("--help", "list", "--version")


def seconds(arguments: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(arguments, check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    bare = statistics.median(seconds([sys.executable, "-c", "pass"]) for _ in range(7))
    print(f"{'python -c pass':<22} {bare:.3f} s")
    for command in COMMANDS:
        median = statistics.median(seconds([sys.executable, "-m", "cryobench", command]) for _ in range(7))
        print(f"{'cryobench ' + command:<22} {median:.3f} s")


if __name__ == "__main__":
    main()
