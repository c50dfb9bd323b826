"""Measurements as files, and images made of them.

Lives here: `measure`, `reconstruct` and the file between them.
May be imported by the API and the command line.
"""
