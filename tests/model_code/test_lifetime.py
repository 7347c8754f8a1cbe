"""Processes that render end with the one that started them, even if that is killed."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from model_code.errors import InputError
from model_code.lifetime import process_pool

CORPUS = """
import sys
from pathlib import Path
from model_code.avatars.corpus import write_corpus
from model_code.config import CorpusConfig

if __name__ == "__main__":
    write_corpus(Path(sys.argv[1]), CorpusConfig(seconds=(1.0, 1.2), frame_size=64), processes=2)
"""
CASES = """
import sys
from pathlib import Path
from model_code.config import BenchmarkConfig, CorpusConfig, MediaConfig
from model_code.lifetime import process_pool
from model_code.metrics.benchmark import build_cases

if __name__ == "__main__":
    config = BenchmarkConfig(cases=8, heads_seed=5, seconds=1.0)
    with process_pool(2) as pool:
        footage = Path(sys.argv[1])
        corpus, cases = CorpusConfig(frame_size=64), footage.with_name("cases")
        build_cases(config, corpus, MediaConfig(), None, cases, scratch=footage, pool=pool)
"""


@pytest.mark.slow
@pytest.mark.parametrize("code", [CORPUS, CASES], ids=["corpus", "benchmark cases"])
def test_render_processes_end_with_a_killed_parent(tmp_path: Path, code: str) -> None:
    script, folder = tmp_path / "parent.py", tmp_path / "made"
    script.write_text(code, encoding="utf-8")
    with subprocess.Popen([sys.executable, str(script), str(folder)]) as parent:
        while not (folder.is_dir() and any(folder.iterdir())):
            assert parent.poll() is None
            time.sleep(0.1)
        children = psutil.Process(parent.pid).children(recursive=True)
        parent.kill()
    assert len(children) >= 2
    alive = psutil.wait_procs(children, timeout=30)[1]
    for process in alive:
        process.kill()
    assert alive == []


def _refuse(what: str) -> None:
    raise InputError(what, "give another")


def test_what_a_pool_refuses_is_told_and_the_pool_goes_on() -> None:
    with process_pool(1) as pool:
        with pytest.raises(InputError, match=r"^five feet \(give another\)$") as told:
            pool.submit(_refuse, "five feet").result()
        assert (told.value.what, told.value.remedy) == ("five feet", "give another")
        assert pool.submit(int, "5").result() == 5
