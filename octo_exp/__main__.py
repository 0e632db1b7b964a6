"""`python -m octo_exp VERB ...`: what the command `octo` does."""

import sys

from octo_exp.cli.entry import main

if __name__ == "__main__":
    sys.exit(main())
