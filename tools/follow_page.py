"""Run the shell blocks of a Markdown page in order in an empty folder, and print the time of each.

    python tools/follow_page.py docs/plugins.md

Stops at the first block that fails and prints its output. `cryobench` and `pip` are those on PATH.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def blocks(page: Path) -> list[str]:
    """The shell blocks of a Markdown page."""
    return re.findall(r"^```sh\n(.*?)^```$", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def main() -> int:
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="follow-") as folder:
        for block in blocks(Path(sys.argv[1])):
            began = time.perf_counter()
            done = subprocess.run(["bash", "-ec", block], cwd=folder, capture_output=True, text=True, check=False)
            for command in block.strip().splitlines():
                print(f"$ {command}")
            if done.returncode:
                print(done.stdout + done.stderr)
                return 1
            print(f"  {time.perf_counter() - began:.1f} s")
    print(f"{sys.argv[1]}: {time.perf_counter() - start:.0f} s in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
