"""Memory of this process, from the kernel (Linux)."""

from __future__ import annotations

import re
from pathlib import Path


def resident(peak: bool) -> int:
    """Bytes of this process: now, or the most since it began its program or forgot.

    Unlike `getrusage`, whose peak a new program inherits from the process that started it.
    """
    status = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(rf"{'VmHWM' if peak else 'VmRSS'}:\s+(\d+) kB", status)
    assert found is not None
    return 1024 * int(found[1])


def forget_peak() -> None:
    """Begins to look for the most anew."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
