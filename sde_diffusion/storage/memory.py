"""How much memory is available, checks against it, and errors that mean that it has run out."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from pathlib import Path

from sde_diffusion.errors import UserError

_OUT_OF_MEMORY = re.compile(
    # torch on CPUs, on devices and in its libraries; C++; the loader of shared libraries; threads without a stack
    r"can'?t allocate memory|cannot allocate memory|out of memory|not enough memory|bad_alloc|_ALLOC_FAILED"
    r"|failed to map segment|can't start new thread|storage size calculation overflowed|invalid buffer size",
    re.IGNORECASE,
)
_ON_DEVICE = re.compile(r"\b(CUDA|HIP|MPS|XPU|CUBLAS|CUDNN|NCCL)", re.IGNORECASE)


def available() -> int | None:
    """Bytes of main memory that are available to this process; None if unknown.

    The smallest of the machine's free memory and what the limits of the container and of `ulimit -v` leave.
    """
    found = list(_left_by_containers())
    try:
        import resource

        meminfo = Path("/proc/meminfo").read_text()
        if free := re.search(r"^MemAvailable:\s+(\d+) kB", meminfo, re.MULTILINE):
            found.append(1024 * int(free[1]))
        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit != resource.RLIM_INFINITY:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            found.append(max(0, limit - pages * resource.getpagesize()))
    except (ImportError, OSError, ValueError, IndexError):  # not Linux
        pass
    return min(found, default=None)


def check_fits(what: str, needed: int, remedy: str) -> None:
    """Check that something fits in memory before allocating it.

    Linux grants nearly every allocation, and kills the process when the memory is used.

    Args:
        what: What needs the memory, for the message.
        needed: Number of bytes.
        remedy: What to do about it, for the message.

    Raises:
        UserError: If more is needed than is available.
    """
    free = available()
    if free is not None and needed > free:
        raise UserError(f"{what} would take {in_words(needed)} of memory, and {in_words(free)} are free: {remedy}")


def ran_out(error: BaseException | None) -> str:
    """Which memory has run out according to an error: "memory", "memory of the device", or "" for other errors.

    Python, NumPy, torch, its libraries and the system have different messages; the causes of an error are checked, too.
    """
    while error is not None:
        text = str(error)
        if isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(text) and _ON_DEVICE.search(text):
            return "memory of the device"
        stated = isinstance(error, RuntimeError | ImportError) and _OUT_OF_MEMORY.search(text)
        if isinstance(error, MemoryError) or stated or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
            return "memory"
        error = error.__cause__
    return ""


def in_words(n: int) -> str:
    """A number of bytes as text, such as 1.5 GiB."""
    value, units = float(n), ["bytes", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{value:,.3g} {units[0]}" if value < 1000 else f"{value:,.0f} {units[0]}"


def _left_by_containers() -> Iterator[int]:
    """Bytes that the limits of Linux control groups leave: those of containers, and of jobs on clusters."""
    try:
        groups = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    except OSError:  # not Linux
        return
    for _, controllers, place in groups:
        if controllers not in ("", "memory"):
            continue
        top = Path("/sys/fs/cgroup", controllers)
        own = top / place.lstrip("/")
        limit, used = ("max", "current") if not controllers else ("limit_in_bytes", "usage_in_bytes")
        for folder in [top, *(one for one in (own, *own.parents) if one.is_relative_to(top) and one != top)]:
            try:
                most, now = (int((folder / f"memory.{name}").read_text()) for name in (limit, used))
                cache = re.search(
                    r"^(?:total_)?inactive_file (\d+)$", (folder / "memory.stat").read_text(), re.MULTILINE
                )
            except (OSError, ValueError):  # not mounted here, or "max": no limit
                continue
            yield max(0, most - now + (int(cache[1]) if cache else 0))  # the cache of files is freed on demand
