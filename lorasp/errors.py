"""The two ways in which a command of lorasp fails, each a sentence that a user can act on."""


class UsageError(ValueError):
    """The arguments or the configuration are wrong: exit code 2, nothing was started."""


class WorkError(RuntimeError):
    """The work itself failed (a download, a damaged file, a full disk): exit code 1."""
