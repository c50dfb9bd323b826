"""The registered data sources.

Lives here: one file a source; readers of files are in `io`.
May be imported by plan and everything above.
"""
