"""Runs the cells of plans on many workers. Failing cells and workers do not stop a sweep.

Lives here: the driver, the queue, and the cell as a job; the workers themselves are in `workers`.
May be imported by the command line.
"""
