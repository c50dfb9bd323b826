"""The physics of cryo-EM images: contrast transfer, electrostatic potential, projection.

Lives here: formulas in torch and NumPy, without files and without registered components.
May be imported by operators, sources and io.
"""
