"""Setting of the C library's memory allocator: large objects return their memory to the system when they are freed."""

import ctypes
import gc

# malloc.h of glibc.
M_MMAP_THRESHOLD = -3
LARGE_BYTES = 256 * 1024


def return_large_memory() -> None:
    """Allocates each object of LARGE_BYTES or more as pages of its own (mallopt(3)). Does nothing without glibc.

    By default glibc raises this threshold up to 32 MB when large objects are freed. The next request's objects then
    fill its heaps, which keep the memory: a gateway had 900 MB after a minute of bodies of 31 MB.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        # Another C library.
        return
    mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)


def collect_less_often() -> None:
    """Excludes the present objects from garbage collections, and starts one after 10,000 new containers, not 700.

    Tasks, futures and timers of running streams are containers, so a busy process collected hundreds of times a second.
    There is no collection before that: of 184,000 objects of a generator, 2,000 were garbage, and finding them took
    0.25 s of its start.
    """
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)
