"""``python -m mergeloom``."""

from mergeloom.cli import main

main()
