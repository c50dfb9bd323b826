"""BM3D as a cryobench solver. The packages bm3d and bm4d, which compute it, are free for non-commercial use only."""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch

from cryobench.core import Problem, Progress, Reconstruction, Solver
from cryobench.errors import DependencyError, described
from cryobench.rng import Rng

SMALLEST = 16
"""Sides of images, in pixels. bm4d 4.2.5 crashes where a side is that of the blocks, 8 or 11 pixels."""


@dataclass(frozen=True)
class Bm3d(Solver):
    """Blocks of an image and those similar to them are filtered together in a 3-D transform domain: by thresholds, and
    with that result as a pilot by a Wiener filter (Dabov, Foi, Katkovnik & Egiazarian 2007, IEEE Trans. Image Process.
    16:2080; with the variances of Mäkinen, Azzari & Foi 2020, ibid. 29:8339).

    It runs the package bm3d of its authors, which is free for non-commercial use only, for white Gaussian noise of the
    stated standard deviation, on `identity`. Where that is 0 the result is y. One thread: with more, the order of sums
    and so the rounding would differ from run to run. Large images: `tiled:bm3d`.
    """

    profile: Annotated[
        Literal["np", "lc", "vn", "high"],
        "of the package: np, the default of its authors; lc, faster; vn, for heavy noise; high, slower",
    ] = "np"

    def unsupported(self, problem: Problem) -> str | None:
        if not problem.operator.identity:
            return "bm3d removes noise from images; it needs the operator identity"
        height, width = problem.operator.image_shape
        if min(height, width) < SMALLEST:
            return f"bm3d needs images of at least {SMALLEST} x {SMALLEST} pixels, got {height} x {width}"
        return None

    def solve(self, problem: Problem, *, rng: Rng, progress: Progress | None = None) -> Reconstruction:
        bm3d = _package()
        profiles = {
            "np": bm3d.BM3DProfile,
            "lc": bm3d.BM3DProfileLC,
            "vn": bm3d.BM3DProfileVN,
            "high": bm3d.BM3DProfileHigh,
        }
        profile = profiles[self.profile]()
        profile.num_threads = 1
        sigma = problem.sigma.flatten().double().expand(problem.batch).tolist()
        x = problem.y.clone()
        for i in range(problem.batch):
            if sigma[i] > 0:
                y = problem.y[i, 0].double().cpu().numpy()
                x[i, 0] = torch.from_numpy(bm3d.bm3d(y, sigma[i], profile)).to(x)
            if progress is not None:
                progress(i + 1, problem.batch)
        return Reconstruction(x)


def _package():
    """The package bm3d, which loads a library of its platform. Raises `DependencyError` where it cannot."""
    try:
        import bm3d
    except (ImportError, OSError) as error:
        raise DependencyError(f"bm3d cannot be imported ({described(error)}); its packages are for x86-64 Linux and "
                              "Windows and for macOS") from error  # fmt: skip
    return bm3d
