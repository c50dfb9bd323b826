"""Workers on this machine and on others: executors, limits, and the loop that hands out jobs.

Lives here: what a sweep and a chunked measurement or reconstruction share; what they run is a `Job`.
May be imported by `measuring`, `sweep` and the command line.
"""
