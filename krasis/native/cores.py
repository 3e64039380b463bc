"""Physical cores: what one worker thread each is for."""

import os
from pathlib import Path

_SIBLINGS = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"


def core_cpus() -> list[int]:
    """One processor of every core that this process may run on, cores of one NUMA node after each other."""
    first: dict[str, int] = {}
    for cpu in sorted(os.sched_getaffinity(0)):
        first.setdefault(_core_of(cpu), cpu)
    return sorted(first.values(), key=lambda cpu: (_node_of(cpu), cpu))


def physical_cores() -> int:
    """The number of cores this process may run on, hardware threads of one core counted once."""
    return len(core_cpus())


def _core_of(cpu: int) -> str:
    try:
        return Path(_SIBLINGS.format(cpu)).read_text()
    except OSError:
        # Some containers hide the topology; then every processor counts as a core.
        return str(cpu)


def _node_of(cpu: int) -> int:
    nodes = Path(f"/sys/devices/system/cpu/cpu{cpu}").glob("node[0-9]*")
    return min((int(node.name.removeprefix("node")) for node in nodes), default=0)
