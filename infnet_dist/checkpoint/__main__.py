"""`python -m infnet_dist.checkpoint`: see `command`."""

import signal
import sys

from infnet_dist.checkpoint.cli.command import main

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that no partial file stays
    sys.exit(main())
