"""Where bytes rest: local folders, and object stores in the shape of `pathlib.Path`; what is the same on both."""
