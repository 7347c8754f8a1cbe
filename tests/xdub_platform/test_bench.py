"""What a long benchmark writes down."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from model_code.metrics.scores import save_records
from tests.xdub_platform.planted import planted_records
from xdub_platform.bench import WITHOUT_RENDERED, records_of, run_bench
from xdub_platform.settings import load_settings


def test_the_results_hold_the_settings_and_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDUB_DATABASE__URL", "postgresql://xdub:HUNTER2@host/dagster")
    monkeypatch.setenv("XDUB_MLFLOW__TRACKING_URI", "postgresql://xdub:HUNTER2@host/mlflow")
    monkeypatch.setenv("XDUB_AUTOMATION__WEBHOOK_URL", "https://hooks.example/HUNTER2")
    settings = load_settings(state_root=tmp_path / "state")
    for variants in (settings.variants, WITHOUT_RENDERED):
        chain = load_settings(state_root=settings.path("seed-0"), seed=0, variants=variants)
        records_of(chain).parent.mkdir(parents=True)
        save_records(records_of(chain), planted_records(0.5, 35.0, {}))
    output = tmp_path / "bench.json"
    run_bench(settings, [0], lambda own: None, lambda step: None, output)
    written = output.read_text(encoding="utf-8")
    assert "HUNTER2" not in written
    assert str(tmp_path) not in written
    assert json.loads(written)["settings"]["mlflow"] == {"experiment": "xdub", "model_name": "xdub-dubber"}
