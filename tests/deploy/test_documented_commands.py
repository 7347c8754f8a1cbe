"""The commands of the docs and of dvc.yaml: `xdub` understands its own; the files and pods of the others are there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from dagster import AssetSelection
from typer.main import get_command

from xdub_platform.cli import app
from xdub_platform.definitions import build_definitions
from xdub_platform.settings import load_settings

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "README.md", *ROOT.glob("docs/*.md")))
DEPLOYING = ("README.md", "docs/deploy.md")
COMPOSE = ["docker", "compose", "-f", "deploy/compose.yaml"]


def commands(page: str) -> list[list[str]]:
    """Every command of the page's shell blocks, in words."""
    blocks = re.findall(r"```(?:bash|console)\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def inside(words: list[str]) -> list[str]:
    """The xdub command that this is, or that it has a container run; empty if it is none."""
    told = re.search(r"(?:^|^nice |^\S+=\S+ |-- |run --rm \S+ )(?:\.venv/bin/)?xdub (.*)", shlex.join(words))
    return shlex.split(told[1]) if told else []


def check_xdub(words: list[str]) -> None:
    """The words are understood by the command line; nothing is run."""
    command: Any = get_command(app)
    while hasattr(command, "commands"):
        assert words[0] in command.commands, words
        command, words = command.commands[words[0]], words[1:]
    command.make_context("xdub", list(words))


def test_what_xdub_is_told_is_understood() -> None:
    told = {page: [words for words in map(inside, commands(page)) if words] for page in PAGES}
    assert {page for page in told if told[page]} >= {*DEPLOYING, "docs/plan.md", "docs/promotion.md", "docs/serving.md"}
    for words in (words for page in PAGES for words in told[page]):
        check_xdub(words)


def test_what_dvc_runs_is_understood_and_selects_what_it_names(tmp_path: Path) -> None:
    text = (ROOT / "dvc.yaml").read_text(encoding="utf-8")
    variables = {name: value for each in yaml.safe_load(text)["vars"] for name, value in each.items()}
    stages = yaml.safe_load(re.sub(r"\$\{(\w+)\}", lambda name: variables[name[1]], text))["stages"]
    graph = build_definitions(load_settings(state_root=tmp_path)).resolve_asset_graph()
    selected = set()
    for stage in stages.values():
        words = shlex.split(stage["cmd"])
        check_xdub(inside(words))
        assert stage["outs"] == [{words[words.index("--receipt") + 1]: {"cache": False}}]
        if "--select" in words:
            selection = words[words.index("--select") + 1]
            chosen = {key.to_user_string() for key in AssetSelection.from_string(selection).resolve(graph)}
            assert chosen == set(re.findall(r"key:(\w+)", selection))
            selected |= chosen
    assert selected == {key.to_user_string() for key in graph.materializable_asset_keys}


def test_an_option_that_is_none_is_found() -> None:
    with pytest.raises(Exception, match=r"[Nn]o such option"):
        check_xdub(["serve", "--new-kee", "me"])


@pytest.mark.parametrize("page", DEPLOYING)
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
