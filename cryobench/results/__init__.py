"""Finished cells on disk.

Lives here: the store of run folders, the export of many of them, and the writer of all CSV; `cryobench.record` has the
record itself. May be imported by the runner, the leaderboard and everything above.
"""
