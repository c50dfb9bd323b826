"""The registered data sources.

Lives here: one file for each source; readers of files are in `io`.
May be imported by plan and everything above.
"""
