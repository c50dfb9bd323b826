"""Finished cells on disk.

Lives here: the store of run folders and the export of many of them; `cryobench.record` has the record itself.
May be imported by the runner, the leaderboard and everything above.
"""
