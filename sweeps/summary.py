"""One table of a sweep: `python -m sweeps.summary FOLDER`."""

import sys

from octo_exp.runs.sweep.summary import main

if __name__ == "__main__":
    sys.exit(main())
