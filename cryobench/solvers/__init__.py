"""The registered solvers and the methods that they share.

Lives here: one file a solver; `proximal` and `methods` for classical ones, `reverse` for those with a diffusion prior.
May be imported by nothing but the registry, by entry point.
"""
