"""octo-exp: experiments with real INT8 training. Importing the package imports nothing heavy."""

__version__ = "0.1.0"
