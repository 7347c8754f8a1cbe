"""The Dockerfile, read by a parser small enough to trust: no image can be built here."""

from __future__ import annotations

import fnmatch
import json
import re
import shlex
from dataclasses import dataclass, field
from importlib.metadata import distribution, entry_points
from pathlib import Path
from typing import Any

import pytest
import yaml

TARGETS = ("control-plane", "worker", "server")


@dataclass
class Stage:
    """One FROM and what follows it."""

    name: str
    parent: str
    lines: list[tuple[str, str]] = field(default_factory=list)

    def last(self, instruction: str) -> str | None:
        """The argument that holds in the end, of this stage alone."""
        return next((text for name, text in reversed(self.lines) if name == instruction), None)


def parse(text: str) -> tuple[dict[str, str], dict[str, Stage]]:
    """Global arguments and the stages of a Dockerfile."""
    text = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    arguments: dict[str, str] = {}
    stages: dict[str, Stage] = {}
    current: Stage | None = None
    for line in filter(None, map(str.strip, text.replace("\\\n", " ").splitlines())):
        instruction, rest = line.split(None, 1)
        if instruction == "FROM":
            parent, name = re.fullmatch(r"(\S+) AS (\S+)", rest).groups()  # type: ignore[union-attr]
            current = stages[name] = Stage(name, parent)
        elif current is None:
            assert instruction == "ARG"
            key, _, value = rest.partition("=")
            arguments[key] = value
        else:
            current.lines.append((instruction, rest))
    return arguments, stages


@pytest.fixture
def dockerfile(deploy: Any) -> tuple[dict[str, str], dict[str, Stage]]:
    return parse(deploy.text("Dockerfile"))


def inherited(stages: dict[str, Stage], target: str, instruction: str) -> str | None:
    """The argument that holds in a target's image."""
    stage: Stage | None = stages[target]
    while stage:
        found = stage.last(instruction)
        if found is not None:
            return found
        stage = stages.get(stage.parent)
    return None


def test_the_base_is_pinned(dockerfile: tuple[dict[str, str], dict[str, Stage]]) -> None:
    arguments, stages = dockerfile
    outside = {stage.parent for stage in stages.values()} - set(stages)
    assert outside == {"${PYTHON_IMAGE}"}
    assert re.fullmatch(r"python:3\.11\.\d+-slim-\w+", arguments["PYTHON_IMAGE"])


@pytest.mark.parametrize("target", TARGETS)
def test_targets_run_as_nobody_special(dockerfile: tuple[dict[str, str], dict[str, Stage]], target: str) -> None:
    _, stages = dockerfile
    user = stages[target].last("USER")
    assert user == "10001:10001", "a number, so that runAsNonRoot can check it"
    after = [name for name, _ in stages[target].lines[[n for n, _ in stages[target].lines].index("USER") :]]
    assert "RUN" not in after
    assert "COPY" not in after


def test_the_user_is_the_pods(dockerfile: tuple[dict[str, str], dict[str, Stage]]) -> None:
    from xdub_platform.kubernetes import USER_ID

    created = next(text for name, text in dockerfile[1]["base"].lines if name == "RUN")
    assert f"--uid {USER_ID}" in created
    assert f"--gid {USER_ID}" in created


@pytest.mark.parametrize("target", TARGETS)
def test_targets_have_commands_that_exist(
    dockerfile: tuple[dict[str, str], dict[str, Stage]], deploy: Any, target: str
) -> None:
    _, stages = dockerfile
    entry = json.loads(inherited(stages, target, "ENTRYPOINT") or "")
    assert entry == ["python", "/app/deploy/entrypoint.py"]
    assert (deploy.repository / "deploy" / "entrypoint.py").is_file()
    assert_command(json.loads(inherited(stages, target, "CMD") or ""))
    health = inherited(stages, target, "HEALTHCHECK")
    assert health
    assert_command(json.loads(health.split("CMD", 1)[1]))


def assert_command(command: list[str]) -> None:
    """The program is python or a console command of a package in the lock or of ours."""
    scripts = {each.name: each for each in entry_points(group="console_scripts")}
    program = command[0]
    assert program == "python" or program in scripts, f"{program} is no console command"
    if program == "xdub":
        from xdub_platform.cli import app

        assert command[1] in {each.name or each.callback.__name__ for each in app.registered_commands}  # type: ignore[union-attr]
    elif program != "python":
        owner = scripts[program].dist
        locked = (Path(__file__).resolve().parents[2] / "requirements.lock").read_text(encoding="utf-8").lower()
        assert owner is not None
        assert f"{owner.name.lower()}==" in locked, f"{owner.name} is not in the lock"


@pytest.mark.parametrize("name", ["compose.yaml", "kubernetes/mlflow.yaml", "kubernetes/server.yaml"])
def test_commands_of_the_other_files_exist(deploy: Any, name: str) -> None:
    commands = []
    values = {"POSTGRES_PASSWORD": "p", "S3_ACCESS_KEY": "k", "S3_SECRET_KEY": "s"}
    for document in yaml.safe_load_all(deploy.interpolated(deploy.text(name), values)):
        for service, each in document.get("services", {}).items():
            if service not in ("postgres", "s3"):
                commands.append([*each.get("entrypoint", []), *each.get("command", [])])
                test = each["healthcheck"].get("test", ["CMD", "python"])
                assert test[0] == "CMD"
                commands.append(test[1:])
        for container in document.get("spec", {}).get("template", {}).get("spec", {}).get("containers", []):
            commands.append([*container.get("command", []), *container["args"]])
    commands = [command for command in commands if command]  # an empty one is the image's own
    assert commands
    for command in commands:
        assert_command(command)


def test_a_command_that_is_none_is_found() -> None:
    with pytest.raises(AssertionError, match="no console command"):
        assert_command(["dagster-webserfer"])
    with pytest.raises(AssertionError):
        assert_command(["xdub", "serf"])


def test_copies_exist_and_pass_the_ignore_file(
    dockerfile: tuple[dict[str, str], dict[str, Stage]], deploy: Any
) -> None:
    ignored = (deploy.repository / ".dockerignore").read_text(encoding="utf-8").splitlines()
    allowed = [line[1:] for line in ignored if line.startswith("!")]
    assert "*" in ignored
    copied = set()
    for stage in dockerfile[1].values():
        assert stage.last("ADD") is None
        for name, text in stage.lines:
            if name == "COPY" and "--from=" not in text:
                copied |= set(shlex.split(text)[:-1])
    assert {"requirements.lock", "xdub_platform", "deploy/entrypoint.py"} <= copied
    for path in copied:
        assert (deploy.repository / path).exists(), path
        assert any(fnmatch.fnmatch(path, pattern) for pattern in allowed), f".dockerignore keeps {path} out"
    assert not any(fnmatch.fnmatch("deploy/.env", pattern) for pattern in allowed)


def test_torch_comes_first_and_is_the_makefiles(
    dockerfile: tuple[dict[str, str], dict[str, Stage]], deploy: Any
) -> None:
    makefile = (deploy.repository / "Makefile").read_text(encoding="utf-8")
    _, stages = dockerfile
    runs = [text for name, text in stages["packages-torch"].lines if name == "RUN"]
    assert "torch==${TORCH_VERSION}" in runs[0]
    assert "--no-deps" not in runs[0]
    assert "--no-deps -r requirements.lock" in runs[1]
    version = next(text for name, text in stages["packages-torch"].lines if text.startswith("TORCH_VERSION"))
    assert f"torch=={version.partition('=')[2]}" in makefile
    assert not any("torch" in text for name, text in stages["packages"].lines if name == "RUN")
    pinned = re.search(r"setuptools==(\S+)", " ".join(text for _, text in stages["tools"].lines))
    assert pinned
    assert int(pinned[1].split(".")[0]) >= 77, "what pyproject.toml asks of the build"
    assert distribution("xdub-platform").version in deploy.text(".env.example")
