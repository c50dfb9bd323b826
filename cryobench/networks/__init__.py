"""Networks that map an image to an image: their architecture, their files, and their application in tiles.

Lives here: what a denoising solver needs of a network that `cryobench train` has trained.
May be imported by solvers, training and the command line.
"""
