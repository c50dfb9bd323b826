"""The physics of cryo-EM images: contrast transfer, electrostatic potential, projection.

Lives here: formulas in torch and NumPy; no files, no registered components.
May be imported by operators, sources and io.
"""
