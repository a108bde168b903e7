"""CPU cores and memory available to this process, including the limits of a container. Standard library only."""

import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def available_cores() -> int:
    """Number of CPU cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_memory() -> int | None:
    """Bytes of memory: the smaller of physical memory and the container's limit; None if neither is known."""
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
