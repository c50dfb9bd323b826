"""deepinv in cryobench, and cryobench in deepinv.

`as_physics` and `as_decomposable` convert a cryobench operator to a deepinv physics, `from_physics` a physics to an
operator; `as_denoiser` converts a diffusion prior to a denoiser, `from_denoiser` a denoiser to a prior. deepinv's
solvers, and some of its physics and denoisers, are registered by name.
"""

from cryobench_deepinv.decomposed import as_decomposable
from cryobench_deepinv.denoisers import as_denoiser, from_denoiser
from cryobench_deepinv.operators import from_physics
from cryobench_deepinv.physics import as_physics

__all__ = ["as_decomposable", "as_denoiser", "as_physics", "from_denoiser", "from_physics"]
