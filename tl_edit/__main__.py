"""``python -m tl_edit``: a fact's whole story on the bundled model, offline; or a command, see `tl_edit.command`."""

import sys

from tl_edit.command import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
