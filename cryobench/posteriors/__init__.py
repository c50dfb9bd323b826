"""Exact posteriors of known priors, and the metrics that compare a solver with them.

Lives here: posteriors for linear operators and Gaussian noise, optimality gap, coverage of highest-density sets,
distances between a sampler's and exact draws, Stein discrepancy.
May be imported by solvers and everything above.
"""
