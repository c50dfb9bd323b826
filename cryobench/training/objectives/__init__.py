"""The built-in training objectives, registered as those of other packages are.

Lives here: what each trains and exports. May be imported through the registry only.
"""
