"""Numerical building blocks that know tensors alone.

Lives here: linear algebra per batch item, Fourier transforms, counter-based random numbers, symmetries of the square.
May be imported by everything above.
"""
