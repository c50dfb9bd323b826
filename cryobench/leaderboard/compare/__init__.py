"""`cryobench compare`: changes between two sets of results, cell by cell.

Lives here: matching of cells, changes and their tests, thresholds, and their rendering.
May be imported by the command line.
"""
