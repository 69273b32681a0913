"""What this process has held, and what the machine has."""

import os
import resource
import sys


def resident() -> int:
    """Return the most memory that this process has held so far, in bytes.

    The system's ru_maxrss is read last: on Linux it counts what the process held before exec, which
    is the memory of whoever started it.
    """
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            return next(int(line.split()[1]) << 10 for line in file if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        pass
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(most if sys.platform == "darwin" else most * 1024)


def room() -> int:
    """Return the memory of this machine, or of the group that this process belongs to."""
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        with open("/sys/fs/cgroup/memory.max", encoding="ascii") as file:
            return min(whole, int(file.read()))
    except (OSError, ValueError):
        return whole
