"""`octo eval RUN [key=value ...]`: tests a trained network again.

RUN is the folder of a run. Its own settings hold, and those given beside: data=, trainer.precision=, ... The results
lie in a new folder.
"""

from typing import NoReturn

from octo_exp.cli import train
from octo_exp.cli.words import Words
from octo_exp.config.resumed import evaluation


def main(words: Words) -> NoReturn:
    """Test the network of the run that is named, in a new folder, and exit."""
    train.begin(evaluation(words.given_path, words.rest))
