"""`octo resume RUN [key=value ...]`: goes on with a run that was broken off.

RUN is its folder. Its own settings hold; beside them may stand what does not change the run so far, as a greater
trainer.max_epochs=.
"""

from typing import NoReturn

from octo_exp.cli import train
from octo_exp.cli.words import Words
from octo_exp.config.resumed import quoted


def main(words: Words) -> NoReturn:
    """Go on with the run in the folder that is named, and exit."""
    train.begin([f"resume={quoted(words.given_path)}", *words.rest])
