"""The doctor on this installation."""

from __future__ import annotations

from pathlib import Path

import pytest

from xdub_platform.doctor import findings
from xdub_platform.settings import load_settings


def test_what_the_chain_needs_is_here(tmp_path: Path) -> None:
    found = {finding.name: finding for finding in findings(load_settings(state_root=tmp_path))}
    for name in ("packages", "face cascade", "Dagster selections", "ffmpeg", "espeak-ng", "git"):
        assert found[name].ok, found[name]


def test_misspelt_settings_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDUB_PHASE__EDITOR__STEPS", "1")
    found = {finding.name: finding for finding in findings(load_settings(state_root=tmp_path))}
    assert not found["environment"].ok
    assert not found["environment"].needed
    assert "XDUB_PHASE__EDITOR__STEPS" in found["environment"].told
