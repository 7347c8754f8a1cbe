"""The load of benchmarks/serving.py, smaller."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.serving import run


@pytest.mark.slow
def test_nothing_is_lost_or_doubled_under_load(tmp_path: Path) -> None:
    load = run(tmp_path, submissions=24, clients=6, bound=5)
    assert len(set(load.accepted)) == load.made == load.begun == load.submissions
    assert load.states == {"done": load.submissions}
    assert load.answers[429] > 0
    assert load.most_active <= 5
    assert max(load.memory) < 1.3 * load.memory[len(load.memory) // 4], "the server's memory stays flat"
    assert load.table()
