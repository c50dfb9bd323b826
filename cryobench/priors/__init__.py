"""The registered priors.

Lives here: sparsity priors, diffusion priors and the loading of their networks.
May be imported by solvers, training and everything above.
"""
