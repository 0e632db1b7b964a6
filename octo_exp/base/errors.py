"""The one exception type for a user's mistake; a leaf that every room may import."""

FAILED = 1


class UserError(ValueError):
    """A mistake of the user, told in one line that names what is wrong and the remedy.

    Command lines print the message without a traceback and exit with `exit_code`. The rule of all of them: 2 where the
    command line, a setting or what it names is refused, and nothing was begun; 1 where what had begun has failed, and
    for a bug. `octo_exp.base.failures.told` sets FAILED on what is found once a batch was trained or tested: a loss
    that is not finite, a full disk.
    """

    exit_code = 2


class FailedError(UserError):
    """What was made is not what it must be: a file that does not verify, say. No setting is wrong."""

    exit_code = FAILED


class ConfigError(UserError):
    """A wrong name, key, option or value in the configuration; found before data are read."""
