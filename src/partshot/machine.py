"""What this process may use of the machine: cores and memory. In a container that is less than the machine has.

Knows the operating system's own words, and nothing that must be installed.
"""

import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def available_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_memory() -> int | None:
    """Bytes of memory that the machine, or the container's limit, leaves to this process; None when nothing says."""
    known = [size for size in (_physical_memory(), _container_limit()) if size]
    return min(known, default=None)


def _physical_memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return None


def _container_limit() -> int | None:
    for name in ("memory.max", "memory/memory.limit_in_bytes"):  # cgroup 2, then 1
        try:
            return int((_CGROUP / name).read_text())
        except (OSError, ValueError):  # no such file, or "max": no limit
            continue
    return None
