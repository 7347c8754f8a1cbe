"""The publish job on a real registry."""

from __future__ import annotations

import subprocess
from pathlib import Path

from ops.publish import publish
from xdub_platform.platform import build_platform
from xdub_platform.settings import load_settings


def test_publishing_tags_what_is_there(tmp_path: Path) -> None:
    platform = build_platform(load_settings(state_root=tmp_path))
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "data.txt").write_text("x", encoding="utf-8")
    platform.store.put("clips/shard-00000", folder)
    config = {"ops": {"publish_registry": {"config": {"tag": "2026-01"}}}}
    result = publish.execute_in_process(run_config=config, resources={"platform": platform})
    assert result.success
    registry = tmp_path / "registry"
    listed = subprocess.run(["git", "show", "--name-only", "2026-01"], cwd=registry, capture_output=True, text=True)
    assert "data/clips/shard-00000.dvc" in listed.stdout
