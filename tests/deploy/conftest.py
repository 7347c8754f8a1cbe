"""Reading of the deploy files, as their own tools read them."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate.utils
import pytest
import yaml

from xdub_platform.settings import KNOWN_ENVIRONMENT, Settings

KUBERNETES = "1.37"
REPOSITORY = Path(__file__).resolve().parents[2]
DEPLOY = REPOSITORY / "deploy"
VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?:(?P<operator>:[-?])(?P<rest>[^}]*))?\}")
ASSIGNED = re.compile(r"[\s\"'{,-]*(?P<name>[\w.]+)[\"']?\s*[:=]\s*(?P<value>.*)")
SECRET = re.compile(r"(password|secret|token|(api|access|secret)_?key)$", re.IGNORECASE)
CREDENTIALS = re.compile(r"://[^\s:/@]+:(?P<password>\$\{[^}]*\}|[^\s@]+)@")
REFERENCE = re.compile(r"\$\{\w+:\?[^}]+\}")


class Deploy:
    """The deploy folder and what its tests ask of it."""

    folder = DEPLOY
    repository = REPOSITORY

    def text(self, name: str) -> str:
        """A file's text."""
        return (DEPLOY / name).read_text(encoding="utf-8")

    def documents(self, name: str) -> list[dict[str, Any]]:
        """Every document of a YAML file."""
        return [each for each in yaml.safe_load_all(self.text(name)) if each]

    @staticmethod
    def strictly_valid(manifest: dict[str, Any]) -> None:
        """Raises `kubernetes_validate.ValidationError` where Kubernetes' own schema would refuse it."""
        kubernetes_validate.utils.validate(manifest, KUBERNETES, strict=True)

    @staticmethod
    def interpolated(text: str, values: dict[str, str]) -> str:
        """Compose's interpolation; a variable that must be set and is not raises KeyError."""

        def value(match: re.Match[str]) -> str:
            found = values.get(match["name"], "")
            if found or match["operator"] is None:
                return found
            if match["operator"] == ":?":
                raise KeyError(match["name"])
            return match["rest"]

        return VARIABLE.sub(value, text)

    def required(self) -> set[str]:
        """Variables without which compose refuses to start."""
        return {match["name"] for match in VARIABLE.finditer(self.text("compose.yaml")) if match["operator"] == ":?"}

    @staticmethod
    def literal_secrets(text: str) -> list[str]:
        """Lines that give a password, key or token a value instead of naming where it comes from."""
        return [line for line in text.splitlines() if not line.lstrip().startswith("#") and _gives_secret(line)]

    @staticmethod
    def unknown_settings(names: set[str]) -> list[str]:
        """XDUB_* names that no setting, nested ones included, answers to."""
        return sorted(name for name in names - KNOWN_ENVIRONMENT if not _is_setting(name))


def _gives_secret(line: str) -> bool:
    if any(not REFERENCE.fullmatch(match["password"]) for match in CREDENTIALS.finditer(line)):
        return True
    match = ASSIGNED.match(line)
    if not match or not SECRET.search(match["name"]):
        return False
    value = match["value"].strip().strip("\"',")
    return not (value in ("", "true", "false") or REFERENCE.fullmatch(value) or value.startswith("os.environ["))


def _is_setting(name: str) -> bool:
    model: Any = Settings
    for part in name.removeprefix("XDUB_").lower().split("__"):
        fields = getattr(model, "model_fields", {})
        if part not in fields:
            return False
        model = fields[part].annotation
    return True


@pytest.fixture(scope="session")
def deploy() -> Iterator[Deploy]:
    """The deploy folder."""
    with pytest.MonkeyPatch.context() as patch:
        # The schemas of all kinds are one large file, which the validator would read for every manifest.
        patch.setattr(
            kubernetes_validate.utils, "schema_contents", functools.cache(kubernetes_validate.utils.schema_contents)
        )
        yield Deploy()
