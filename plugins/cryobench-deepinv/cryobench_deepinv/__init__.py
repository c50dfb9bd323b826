"""deepinv in cryobench, and cryobench in deepinv.

`as_physics` and `as_decomposable` make a physics of deepinv of a cryobench operator, `from_physics` an operator of a
physics; `as_denoiser` makes a denoiser of a diffusion prior, `from_denoiser` a prior of a denoiser. deepinv's solvers,
and some of its physics and denoisers, are registered by name.
"""

from cryobench_deepinv.decomposed import as_decomposable
from cryobench_deepinv.denoisers import as_denoiser, from_denoiser
from cryobench_deepinv.operators import from_physics
from cryobench_deepinv.physics import as_physics

__all__ = ["as_decomposable", "as_denoiser", "as_physics", "from_denoiser", "from_physics"]
