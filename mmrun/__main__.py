"""``python -m mmrun`` is ``mmrun``."""

import sys

from mmrun.cli import main

sys.exit(main())
