"""The entry point of the program, and ``python -m mergeloom``."""

from __future__ import annotations

import sys
from typing import NoReturn

from mergeloom.packages import missing_package


def main() -> NoReturn:
    """Run the program; without a package that its command line needs, an error in one line."""
    try:
        from mergeloom.cli import main as run
    except ImportError as error:
        missing = missing_package(error)
        if missing is None:
            raise
        print(f"error: {missing}", file=sys.stderr)
        sys.exit(missing.exit_code)
    run()


if __name__ == "__main__":
    main()
