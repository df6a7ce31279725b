"""Exclusive locks on open files, for Linux, macOS and Windows."""

from __future__ import annotations

import os
import sys

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl


def lock_file(descriptor: int) -> None:
    """Lock an open file exclusively, without waiting, until it is closed or the process ends.

    Args:
        descriptor: descriptor of a file that is open for writing.

    Raises:
        OSError: another process, or another open file of this process, holds the lock.
    """
    if sys.platform == "win32":
        os.lseek(descriptor, 0, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    else:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
