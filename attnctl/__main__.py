"""``python -m attnctl`` is ``attnctl``."""

from __future__ import annotations

import sys

from attnctl.cli import main

if __name__ == "__main__":
    sys.exit(main())
