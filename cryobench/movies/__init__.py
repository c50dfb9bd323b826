"""From movies to a folder of pairs, on any worker.

Lives here: the task that sums movies; what a movie, its corrections and a folder of pairs are is in `io.movies`.
May be imported by the command line.
"""
