"""`octo summary FOLDER`: the table of a sweep again.

FOLDER is multirun/DATE/TIME. Ends with code 1 where a job of it has failed.
"""

from octo_exp.cli.words import Words
from octo_exp.runs.sweep.summary import report


def main(words: Words) -> int:
    """Print the table; return 1 where a job failed."""
    return 1 if report(words.given_path) else 0
