"""Fixtures: real images if available, synthetic images, and plugins that are installed without pip."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from cryobench.cli import main
from cryobench.results.store import Results

# two test processes share two cores: one thread each is faster, and keeps results the same on any machine
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parents[1]
# the demo images are simulated once for all test processes and later runs, outside the user's cache
os.environ["CRYOBENCH_CACHE"] = str(ROOT / ".pytest_cache" / "cryobench")

SHARED = ROOT.parent / "shared"

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real images and reference numbers next to the checkout. The test is skipped if it is missing."""
    if not (SHARED / "data").is_dir():
        pytest.skip(f"no real images here: {SHARED} is missing")
    return SHARED


@pytest.fixture(scope="session")
def particle(shared: Path) -> torch.Tensor:
    """The real EMPIAR-10076 particle, float32 [1, 1, 128, 128] in [-1, 1]."""
    image = torch.load(shared / "data" / "sample_empiar10076.pt", weights_only=True)
    low, high = image.min(), image.max()
    return (2 * (image - low) / (high - low) - 1).reshape(1, 1, 128, 128)


@pytest.fixture
def blobs(tmp_path: Path) -> Path:
    """A small smooth stack, `blobs.npy`, float32 [6, 32, 32]: seconds of solver time instead of minutes."""
    rng = np.random.default_rng(7)
    y, x = np.mgrid[:32, :32]
    images = np.zeros((6, 32, 32))
    for image in images:
        for _ in range(4):
            cy, cx, width = rng.uniform(8, 24), rng.uniform(8, 24), rng.uniform(2, 5)
            image += rng.uniform(0.5, 1) * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * width**2))
    path = tmp_path / "blobs.npy"
    np.save(path, images.astype(np.float32))
    return path


@pytest.fixture
def cli(monkeypatch, tmp_path, capsys):
    """Run the command in-process in an empty folder: cli("run", ...) -> (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["cryobench", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capsys.readouterr()
        return stop.value.code or 0, captured.out, captured.err

    return call


PluginMaker = Callable[..., Path]


@pytest.fixture
def full_disk(monkeypatch) -> Callable[..., AbstractContextManager[None]]:
    """`with full_disk(after=n)`: writing fails after n records."""

    @contextmanager
    def full(after: int) -> Iterator[None]:
        fill, left = Results._fill, [after]

        def failing(self, folder, *rest):
            fill(self, folder, *rest)
            left[0] -= 1
            if left[0] < 0:
                raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(Results, "_fill", failing)
            yield

    return full


@pytest.fixture(scope="module")
def browser():
    """A browser; the test is skipped without one."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"no browser here: none of {', '.join(BROWSERS)} is in PATH")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def install_plugin(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> PluginMaker:
    """Install a distribution into a folder on sys.path (and PYTHONPATH, for subprocesses): no pip, no network.

    install_plugin("cryobench-x", {"cryobench.solvers": {"x": "x_module:X"}}, x_module="source code")
    """
    from cryobench.registry import installed

    def install(name: str, groups: dict[str, dict[str, str]], *, version: str = "1.0", **modules: str) -> Path:
        site = tmp_path_factory.mktemp("site")
        info = site / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        lines = []
        for group, points in groups.items():
            lines += [f"[{group}]", *(f"{key} = {target}" for key, target in points.items())]
        (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
        for module, source in modules.items():
            (site / f"{module}.py").write_text(source)
            monkeypatch.delitem(sys.modules, module, raising=False)
        monkeypatch.syspath_prepend(site)
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")]))
        installed.cache_clear()
        return site

    yield install
    installed.cache_clear()
