"""The command, as ``python -m squirrel_torch``."""

import sys

from squirrel_torch.cli import main

__all__: list[str] = []

if __name__ == "__main__":
    sys.exit(main())
