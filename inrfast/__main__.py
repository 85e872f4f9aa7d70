"""``python -m inrfast``: the command line where its script is not on the path."""

import sys

from inrfast.cli import main

sys.exit(main())
