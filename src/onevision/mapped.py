"""Files as read-only memory, of which a process may have many thousands at once.

Python's `mmap` (before 3.13), and so NumPy's `memmap`, keeps a file open for each mapping. A corpus of 85 million
samples has 8,500 parts; most systems let a process open 1,024 files. The system's own call needs the file for a moment
only; Linux allows 65,530 mappings (`vm.max_map_count`).
"""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref
from pathlib import Path

_SYSTEM = ctypes.CDLL(None, use_errno=True)
_SYSTEM.mmap.restype = ctypes.c_void_p
_SYSTEM.mmap.argtypes = (
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long
)  # fmt: skip
_SYSTEM.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_FAILED = ctypes.c_void_p(-1).value


def map_file(path: Path) -> memoryview:
    """The bytes of a file, shared by processes and safe to fork. The mapping ends with the last view of it.

    Raises:
        OSError: it cannot be read.
        ValueError: it is empty.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if not size:
            raise ValueError("it is empty")
        address = _SYSTEM.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), 0)
    if address == _FAILED:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(path))
    owner = (ctypes.c_ubyte * size).from_address(address)
    # Not at the end of the process: threads may still be reading then.
    weakref.finalize(owner, _SYSTEM.munmap, address, size).atexit = False
    return memoryview(owner).cast("B").toreadonly()
