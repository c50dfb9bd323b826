"""Movies of a detector: their readers, corrections, and the two halves that their frames sum to.

Lives here: a file for each format, gain and defects, hot pixels, alignment, exposure weighting, the folder of pairs.
May be imported by `sources`, the pipeline in `cryobench.movies` and everything above.
"""
