"""Measurement files, and the reconstruction of images from them.

Lives here: `measure`, `reconstruct` and the format of measurement files.
May be imported by the API and the command line.
"""
