"""Numerical building blocks that depend on tensors only.

Contents: linear algebra per batch item, Fourier transforms, counter-based random numbers, symmetries of the square.
May be imported by every other layer.
"""
