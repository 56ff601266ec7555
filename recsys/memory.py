"""How the process holds its memory."""

import ctypes
import sys

M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1
LARGEST_BLOCK = 1 << 30
OLD_LIMIT = 32 << 20
"""The most that older versions of glibc accept."""
MOST_KEPT = 2**31 - 1


def keep_freed_memory() -> None:
    """Lets glibc reuse freed blocks of up to a GiB instead of giving them back to the system.

    A training step frees and asks for the same blocks of tens of megabytes again and again; fetched from the system,
    each of their pages costs a page fault, which together can outweigh the arithmetic (docs/speed.md). Does nothing
    with another C library.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and (mallopt(M_MMAP_THRESHOLD, LARGEST_BLOCK) or mallopt(M_MMAP_THRESHOLD, OLD_LIMIT)):
        mallopt(M_TRIM_THRESHOLD, MOST_KEPT)
