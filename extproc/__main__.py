"""`python -m extproc` is `homing`."""

import sys

from extproc.cli import main

sys.exit(main())
