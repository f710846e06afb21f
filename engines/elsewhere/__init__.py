"""A backend in another process with another Python: JetPack 5's, for whose 3.8 alone its TensorRT is made.

Both sides run the files of this project, those on the other side by way of ``worker``. What passes between them is
here; which backend it is, and what stands behind it, is not.
"""
