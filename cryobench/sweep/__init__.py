"""Runs the cells of plans on many workers. Failing cells and workers do not stop a sweep.

Lives here: the driver, the queue, the executors and the worker.
May be imported by the command line.
"""
