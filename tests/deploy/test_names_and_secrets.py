"""No file of the deploy folder names a setting that is none, or holds a secret."""

import re
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "deploy"
FILLED_IN = {".env", "secrets.env"}
"""The user's own, with real secrets; git ignores them."""
TEXTS = sorted(
    path for path in FOLDER.rglob("*") if path.is_file() and path.suffix != ".pyc" and path.name not in FILLED_IN
)


def test_git_ignores_what_the_user_fills_in() -> None:
    ignored = set((FOLDER / ".gitignore").read_text(encoding="utf-8").split())
    assert ignored >= FILLED_IN


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_every_variable_is_a_setting(deploy: Any, path: Path) -> None:
    names = set(re.findall(r"\bXDUB_[A-Z0-9_]+", path.read_text(encoding="utf-8")))
    assert deploy.unknown_settings(names) == []


def test_the_scan_reads_variables_at_all() -> None:
    found = {name for path in TEXTS for name in re.findall(r"\bXDUB_[A-Z0-9_]+", path.read_text(encoding="utf-8"))}
    assert {"XDUB_DATABASE__URL", "XDUB_PROCESSES__LAUNCHER", "XDUB_STORE__S3_ENDPOINT"} <= found


def test_a_wrong_name_is_found(deploy: Any) -> None:
    wrong = {"XDUB_DATABSE__URL", "XDUB_DATABASE__URI", "XDUB_STORE__URL__X", "XDUB_"}
    assert deploy.unknown_settings(wrong | {"XDUB_DATABASE__URL", "XDUB_PROFILE"}) == sorted(wrong)


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_no_secret_has_a_value(deploy: Any, path: Path) -> None:
    assert deploy.literal_secrets(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "planted",
    [
        "POSTGRES_PASSWORD=changeme",
        "      POSTGRES_PASSWORD: postgres",
        "  postgresqlPassword: test",
        '  "secretKey": "abc123",',
        "POSTGRES_PASSWORD: ${POSTGRES_PASSWORD:-xdub}",
        "url: postgresql://xdub:xdub@postgres:5432/xdub",
        "url: postgresql://xdub:${POSTGRES_PASSWORD:-xdub}@postgres:5432/xdub",
        "AWS_SECRET_ACCESS_KEY: minioadmin",
    ],
)
def test_a_planted_secret_is_found(deploy: Any, planted: str) -> None:
    assert deploy.literal_secrets(planted) == [planted]


def test_every_reference_is_required_and_offered(deploy: Any) -> None:
    """What compose demands is an empty line of .env.example, and nothing else is."""
    demanded = deploy.required()
    lines = [line for line in deploy.text(".env.example").splitlines() if line and not line.startswith("#")]
    offered = dict(line.split("=", 1) for line in lines)
    optional = set(re.findall(r"\$\{(\w+):-", deploy.text("compose.yaml")))
    assert {name for name, value in offered.items() if not value} - {"TORCH_INDEX_URL"} == demanded
    assert set(offered) - demanded == optional
