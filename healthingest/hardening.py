"""What every process that may hold values does first: nobody else reads its files, and its memory goes nowhere."""

import contextlib
import ctypes
import os
import resource

_PR_SET_DUMPABLE = 4


def harden() -> None:
    """Files for their owner only; no core dump, and no other process of the user may look into this one's memory."""
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Linux only: also closes /proc/<pid>/mem and ptrace to others of the same user.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
