"""`cryobench compare`: two sets of results, cell by cell.

Lives here: matching, changes, thresholds and how they are shown.
May be imported by the command line.
"""
