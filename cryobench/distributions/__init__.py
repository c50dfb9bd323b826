"""Distributions of images whose density, denoiser and score have closed forms.

Lives here: stationary Gaussian fields, mixtures of Gaussians, sparse blocks, and what describes them in a spec.
May be imported by priors, sources and everything above.
"""
