"""Numbers: stored rows in, dense rows out. One layout a file, and the closed table of all layouts."""
