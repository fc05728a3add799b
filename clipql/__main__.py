"""`python -m clipql` is the `clipql` command."""

from __future__ import annotations

import sys

from clipql.cli.entry import main

if __name__ == "__main__":
    sys.exit(main())
