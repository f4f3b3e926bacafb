"""Start a file of this folder as part of its package: `python /path/to/this_folder train key=value …`."""

import os
import sys

# Python put this folder, or with -m the working directory, on its path. Files there must replace nobody's module.
if os.path.abspath(sys.path[0]) in (os.path.dirname(os.path.abspath(__file__)), os.getcwd()):
    del sys.path[0]

from common.launch import main

main(__file__)
