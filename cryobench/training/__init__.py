"""Trains unconditional diffusion models on images of any source: what `cryobench train` runs."""
