"""Runs the cells of plans on many workers, whatever fails in between."""
