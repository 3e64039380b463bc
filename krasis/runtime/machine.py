"""What this machine has."""

import os
from pathlib import Path


def available_ram() -> int:
    """Bytes that can be allocated without swapping, page cache counted as free."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
