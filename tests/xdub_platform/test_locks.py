"""Lock files across processes."""

import subprocess
import sys
import threading
import time
from pathlib import Path

from xdub_platform.locks import held

HOLD = """
import sys
from pathlib import Path
from xdub_platform.locks import held
with held(Path(sys.argv[1])) as free:
    print(free, flush=True)
    sys.stdin.read()
"""


def test_a_lock_is_another_processs_until_it_is_killed(tmp_path: Path) -> None:
    lock = tmp_path / "new" / "a.lock"
    command = [sys.executable, "-c", HOLD, str(lock)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"
        for wait in (0.0, 0.2):
            with held(lock, wait) as free:
                assert not free
        start = time.monotonic()
        killer = threading.Timer(0.5, holder.kill)
        killer.start()
        with held(lock) as free:
            assert free
            assert time.monotonic() - start >= 0.5
        killer.join()
    with held(lock, 0.0) as free:
        assert free


def test_what_the_lock_file_says_stays_when_others_ask(tmp_path: Path) -> None:
    lock = tmp_path / "a.lock"
    with held(lock):
        lock.write_text("whose it is", encoding="utf-8")
        with held(lock, 0.0) as free:
            assert not free
    with held(lock):
        assert lock.read_text(encoding="utf-8") == "whose it is"
