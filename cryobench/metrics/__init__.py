"""The registered metrics.

Lives here: one file a family of metrics, `rings` and `within` for where they look.
May be imported by plan, the runner and everything above.
"""
