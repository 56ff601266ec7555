"""Errors a user can act on: what was wrong (with the value), where, and what to do.

The command line prints the message alone and exits with `exit_code`. It also explains files that cannot be read or
written and optional packages that are missing; anything else is a bug, whose traceback `--debug` shows.
"""


class RecsysError(Exception):
    """Base of every error that is the input's fault, not the program's."""

    exit_code = 1


class DataError(RecsysError):
    """Logs, datasets or prepared data are not what the step needs."""


class ConfigError(RecsysError):
    """A setting, a model name or an option cannot be used as given."""

    exit_code = 2


class BundleError(RecsysError):
    """A bundle is incomplete, altered, or made by an incompatible version."""


class RegistryError(RecsysError):
    """The model registry does not hold what was asked for."""


class LimitError(RecsysError):
    """A step took longer than it may."""


class GateError(RecsysError):
    """A quality gate said no: the step ran, and its result must not be used."""

    exit_code = 3


class EndpointError(RecsysError):
    """A language model's server does not answer, or not as one."""


class BudgetError(RecsysError):
    """The next call could cost more than the job may spend."""
