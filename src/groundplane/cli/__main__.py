"""`python -m groundplane.cli`: the same as `groundplane`."""

import sys

from groundplane.cli import main

sys.exit(main())
