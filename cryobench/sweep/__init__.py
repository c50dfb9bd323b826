"""Runs the cells of plans on many workers, whatever fails in between.

Lives here: the queue, the executors and the worker.
May be imported by the command line.
"""
