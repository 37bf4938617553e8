"""Measurements, run by hand; a short test of each keeps it running.

The processes that are measured find the package compiled, as pip leaves one that it installs, whatever this
environment says of writing bytecode: compiling takes a tenth of a second.
"""

import compileall
from pathlib import Path

compileall.compile_dir(Path(__file__).parents[2] / "tensorport_hub", quiet=2)
