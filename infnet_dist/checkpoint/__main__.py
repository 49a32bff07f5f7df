"""`python -m infnet_dist.checkpoint`: see `command`."""

import sys

from infnet_dist.checkpoint.command import main

if __name__ == "__main__":
    sys.exit(main())
