"""Leaderboards: records ranked, tested and rendered, and the comparison of two results.

Lives here: the table of records and its index, statistics, renderings, the HTML page, `cryobench compare`.
May be imported by sweeps, the Python interface and the command line.
"""
