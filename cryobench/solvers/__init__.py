"""The registered solvers and the methods that they share.

Contents: one file per solver; `proximal` and `methods` for classical ones, `reverse` for those with a diffusion prior.
Imported only by the registry, through entry points.
"""
