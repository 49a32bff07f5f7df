"""`python -m infnet_dist.checkpoint`: see `cli.command`."""

import signal
import sys

from infnet_dist.checkpoint.cli.command import main

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that partial files are deleted
    sys.exit(main())
