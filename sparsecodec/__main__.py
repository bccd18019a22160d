"""``python -m sparsecodec``."""

import sys

from sparsecodec.cli import main

sys.exit(main())
