"""Maps: volumes reconstructed from projections, their halves, resolution and masks.

A map is a cube [D, D, D] with the axes z, y, x and its origin at voxel D // 2.
May be imported by solvers and higher layers.
"""
