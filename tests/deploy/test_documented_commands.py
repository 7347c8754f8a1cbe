"""The commands of the docs: every file, service, pod and option in them is there, and they work in their order."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from xdub_platform.cli import app

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "docs/deploy.md")
COMPOSE = ["docker", "compose", "-f", "deploy/compose.yaml"]


def commands(page: str) -> list[list[str]]:
    """Every command of the page's shell blocks, in words."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def inside(words: list[str]) -> list[str]:
    """The xdub command that a command has a container run; empty if it runs none."""
    told = re.search(r"(?:-- |run --rm \S+ )xdub (.*)", shlex.join(words))
    return shlex.split(told[1]) if told else []


def check_xdub(words: list[str]) -> None:
    """The words are understood by the command line; nothing is run."""
    command: Any = get_command(app)
    while hasattr(command, "commands"):
        assert words[0] in command.commands, words
        command, words = command.commands[words[0]], words[1:]
    command.make_context("xdub", list(words))


@pytest.mark.parametrize("page", PAGES)
def test_what_containers_are_told_is_understood(page: str) -> None:
    told = [inside(words) for words in commands(page)]
    assert any(told)
    for words in filter(None, told):
        check_xdub(words)


def test_an_option_that_is_none_is_found() -> None:
    with pytest.raises(Exception, match=r"[Nn]o such option"):
        check_xdub(["serve", "--new-kee", "me"])


@pytest.mark.parametrize("page", PAGES)
def test_the_server_has_a_key_before_it_starts(page: str) -> None:
    compose = [words[len(COMPOSE) :] for words in commands(page) if words[:4] == COMPOSE]
    services = yaml.safe_load((ROOT / COMPOSE[3]).read_text(encoding="utf-8"))["services"]
    actions = [words[0] for words in compose]
    assert "exec" not in actions, "of a container that restarts for want of a key"
    key = compose[actions.index("run")]
    assert key[:3] == ["run", "--rm", "server"]
    assert key[2] in services
    assert inside(key)[:2] == ["serve", "--new-key"]
    assert actions.index("build") < actions.index("run") < actions.index("up")


def test_files_and_pods_of_kubectl_exist(deploy: Any) -> None:
    told = [words[1:] for words in commands("docs/deploy.md") if words[0] == "kubectl"]
    pods: dict[str, str] = {}
    for words in told:
        for option in ("-f", "-k"):
            if option in words:
                path = ROOT / words[words.index(option) + 1]
                assert path.exists(), path
                for document in deploy.documents(path.relative_to(deploy.folder)) if option == "-f" else ():
                    pods[document["metadata"]["name"]] = document["kind"]
        if "exec" in words:
            assert pods[words[words.index("exec") + 1]] == "Pod", words
    assert any("--new-key" in words for words in told)
