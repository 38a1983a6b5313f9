"""The one exception family: each error is one line for the person who can mend it."""

from __future__ import annotations

import errno

MEMORY_SHORT = (
    "the system has no memory left for this process: the same command continues when other "
    "programs have ended, or with a smaller --ram"
)
_WORDS = ("can't allocate memory", "can't start new thread", "failed to map segment")
"""How torch, Python's threads and the loader of libraries put it."""


class LoomError(Exception):
    """Base of every error that is reported without a traceback.

    The message is one lowercase line: what, where (quoted), why, and how to mend it.
    ``exit_code`` is the process's exit status: 1 failed while running (resumable), 2 wrong
    usage, configuration or checkpoint.
    """

    exit_code = 2


class ConfigError(LoomError):
    """A configuration that means nothing, or not what its author can have meant."""


class CheckpointError(LoomError):
    """A checkpoint that is malformed, incomplete or does not fit the merge."""


class BudgetError(LoomError):
    """A memory budget that cannot work; the message names the smallest one that can."""


class DeviceError(LoomError):
    """A device that is asked for and is not there."""


class OutputError(LoomError):
    """An output directory that must not or cannot be written."""


class RunError(LoomError):
    """The run failed; what is finished is kept, and the same command continues."""

    exit_code = 1


def is_memory_short(error: BaseException) -> bool:
    """Whether ``error`` is what Python, the system or torch raises for want of memory."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    worded = isinstance(error, (RuntimeError, ImportError))
    return isinstance(error, MemoryError) or (worded and any(w in str(error) for w in _WORDS))
