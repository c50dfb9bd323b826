"""Trains unconditional diffusion models on images of any source, for `cryobench train`.

Lives here: the loop, checkpoints and the export of a prior.
May be imported by the command line.
"""
