"""What of an index stays in memory where its vectors lie on the disk: what every search reads, whatever is asked.

Lists are ranked by arrays of a few numbers a list, and a code is of no use without its scale and row number, which lie
in files of their own. The page cache would drop their pages for those of codes and rows. What must stay true: values
are those of the files; processes that map one index share what is kept, where the system lets pages be locked.
"""

from __future__ import annotations

from clipql.engine import memory
from clipql.index.ivf import kernels
from clipql.index.ivf.arrays import Arrays
from clipql.storage.vectors.bits import ask_whole

OF_LISTS = tuple(name for name in Arrays._fields if name not in ("codes", "scale", "bias", "rows"))
OF_ROWS = ("scale", "bias", "rows")
SHARE = 0.5  # of the memory that is left, the most that is kept so; the rest is the page cache's, for codes


def kept(arrays: Arrays) -> tuple[Arrays, int]:
    """The arrays, those that every search reads in memory from now on: locked, or else, where they are of lists and so
    not large, copied. What they hold is asked of the disk, and not waited for. And where the index is then, as
    `kernels.search` takes it.
    """
    cold, found = kernels.CODES_ON_DISK, arrays._asdict()
    room = SHARE * max(0, memory.limit() - memory.in_use())
    for name in (*OF_LISTS, *OF_ROWS):
        array = found[name]
        if not array.nbytes:
            continue
        if array.nbytes <= room and memory.lock(array.ctypes.data, array.nbytes):
            ask_whole(array)
        elif array.nbytes <= room and name in OF_LISTS:
            found[name] = array.copy()
            found[name].setflags(write=False)  # as what is mapped, or the kernels are compiled once more
        else:
            cold = kernels.ON_DISK if name in OF_ROWS else cold
            continue
        room -= array.nbytes
    return Arrays(**found), cold
