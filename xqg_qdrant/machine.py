"""Report the processor, its instructions for integer products, the free memory, and the user's cache; start Python."""

from __future__ import annotations

import os
import platform
import sys
from contextlib import suppress
from pathlib import Path

# These decide how fast 8-bit integers are multiplied and, without a probe, how exactly.
INTEGER_INSTRUCTIONS = ("avx2", "avx512bw", "avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm")


def prepare_child(module: str, *arguments: object) -> tuple[list[str], dict[str, str]]:
    """Return the command and the environment of a process that calls a module's `main` with texts.

    It finds this package, and what it needs, where this process found them.
    """
    # Not -m, which warns on standard error that the package has imported this module already.
    program = f"import sys; from {module} import main; main(*sys.argv[1:])"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    return [sys.executable, "-P", "-c", program, *map(str, arguments)], environment


def processor_name() -> str:
    """Return the processor's name."""
    return _read_cpuinfo().get("model name") or platform.processor() or platform.machine()


def integer_instructions() -> list[str]:
    """Return which of `INTEGER_INSTRUCTIONS` the processor has; empty if the system does not list them."""
    found = _read_cpuinfo()
    flags = {*found.get("flags", "").split(), *found.get("Features", "").split()}
    return [name for name in INTEGER_INSTRUCTIONS if name in flags]


def free_memory() -> int | None:
    """Return how many bytes this process can still allocate, None if unknown.

    This is the smaller of what the machine and its control group have left.
    """
    found = []
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found.append(1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]))
    with suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text(encoding="ascii"))
        found.append(limit - int((group / "memory.current").read_text(encoding="ascii")))
    return min(found, default=None)


def _read_cpuinfo() -> dict[str, str]:
    """Return the entries of the first processor in `/proc/cpuinfo`; empty on other systems."""
    with suppress(OSError):
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0]
        pairs = (line.partition(":") for line in first.splitlines())
        return {name.strip(): value.strip() for name, _, value in pairs}
    return {}


def find_cache() -> Path:
    """Return the folder of the user's cache, which may not exist yet."""
    root = os.environ.get("XQG_CACHE") or os.environ.get("XDG_CACHE_HOME")
    return Path(root) / "xqg" if root else Path.home() / ".cache" / "xqg"
