"""From a saved result of many structures to clusters, maps and particles for the next refinement, without solving.

A layer of its own beside `measuring`: it reads what `results` saved and makes files and a page, as `measuring` does
with images, and neither needs the other. It imports no solver; the model of maps comes through the registry.
"""
