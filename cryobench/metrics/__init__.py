"""The registered metrics.

Contents: one file per family of metrics; `rings` and `within` define the evaluated regions.
May be imported by maps, plan, the runner and higher layers.
"""
