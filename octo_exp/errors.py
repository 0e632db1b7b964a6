"""The one exception type for a user's mistake; a leaf that every room may import."""


class UserError(ValueError):
    """A mistake of the user, told in one line that names what is wrong and the remedy.

    Command lines print the message without a traceback and exit with `exit_code`.
    """

    exit_code = 1


class ConfigError(UserError):
    """A wrong name, key, option or value in the configuration; found before anything heavy is imported."""

    exit_code = 2
