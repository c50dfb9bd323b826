"""Files of images and tables: reading, writing, converting, scaling.

Lives here: formats and what is done to images on their way in and out; registered sources are in `sources`.
May be imported by sources, plan and everything above.
"""
