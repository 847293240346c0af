"""`haneul`, the command."""

from __future__ import annotations

import signal
import sys

from haneul.app.lifecycle import Lifecycle
from haneul.cli.run import run


def main() -> None:
    # A parent may have left SIGCHLD ignored: then exit codes of children would be lost.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    sys.exit(run(Lifecycle()))


if __name__ == "__main__":
    main()
