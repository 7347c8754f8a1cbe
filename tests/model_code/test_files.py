from __future__ import annotations

import json
from pathlib import Path

import pytest

from model_code.files import write_json


def test_json_is_whole_or_not_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.json"
    write_json(path, {"z": "ü", "a": [1, 0.5, None]})
    assert path.read_text(encoding="utf-8").index("z") < path.read_text(encoding="utf-8").index("a")
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"loss": float("nan")})
    assert json.loads(path.read_text(encoding="utf-8")) == {"z": "ü", "a": [1, 0.5, None]}
    assert [file.name for file in path.parent.iterdir()] == ["a.json"]
