"""The registered encoders: features of particle images, from which latents begin.

Lives here: principal components of images, and the features of networks.
May be imported by solvers and everything above.
"""
