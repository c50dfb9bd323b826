"""Runs the cells of plans on many workers and survives failing cells and workers.

Lives here: the driver, the queue, the executors and the worker.
May be imported by the command line.
"""
