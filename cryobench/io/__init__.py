"""Files of images and tables: reading, writing, converting, scaling.

Lives here: file formats, and operations on images when they are read or written; registered sources are in `sources`.
May be imported by sources, plan and everything above.
"""
