"""`python -m infnet_dist.checkpoint`: see `cli.command`."""

import sys

from infnet_dist.checkpoint.cli.command import main

if __name__ == "__main__":
    sys.exit(main())
