"""A shard of raw footage holds the files that its ledger lists, and no others of their names."""

from pathlib import Path

import dagster as dg
import pytest

from assets.raw_corpus import raw_corpus
from tests.xdub_platform.planted import platform_on
from xdub_platform.partitions import SHARDS_NAME
from xdub_platform.platform import Platform


@pytest.fixture
def platform(tmp_path: Path) -> Platform:
    """Two files that arrived as one shard."""
    platform = platform_on(tmp_path / "state")
    for name in ("a", "b"):
        drop(platform, name, name)
    assert take(platform) == ["shard-00000"]
    return platform


def drop(platform: Platform, name: str, text: str) -> None:
    platform.settings.incoming.mkdir(exist_ok=True)
    (platform.settings.incoming / f"{name}.mp4").write_text(text, encoding="utf-8")


def take(platform: Platform) -> list[str]:
    return platform.ledger.take(platform.settings.incoming, 10)


def made(platform: Platform, shard: str) -> dict[str, str]:
    """What the shard holds once it is made: name -> text."""
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions(SHARDS_NAME, platform.ledger.shards())
        resources = {"platform": platform}
        assert dg.materialize([raw_corpus], instance=instance, resources=resources, partition_key=shard).success
    files = platform.store.path(f"raw_corpus/{shard}").iterdir()
    return {path.name: path.read_text(encoding="utf-8") for path in files if not path.name.startswith(".")}


def test_a_replaced_file_enters_a_later_shard_alone(platform: Platform) -> None:
    drop(platform, "b", "replaced")
    assert made(platform, "shard-00000") == {"a.mp4": "a"}
    assert take(platform) == ["shard-00001"]
    assert made(platform, "shard-00001") == {"b.mp4": "replaced"}
    assert made(platform, "shard-00000") == {"a.mp4": "a"}


def test_a_file_whose_sidecar_arrived_late_enters_a_later_shard_alone(platform: Platform) -> None:
    (platform.settings.incoming / "b.json").write_text("{}", encoding="utf-8")
    assert take(platform) == ["shard-00001"]
    assert "b.mp4" not in made(platform, "shard-00000")
    assert made(platform, "shard-00001") == {"b.mp4": "b", "b.json": "{}"}


def test_a_shard_whose_files_were_all_replaced_is_empty(platform: Platform) -> None:
    for name in ("a", "b"):
        drop(platform, name, "replaced")
    assert made(platform, "shard-00000") == {}
    assert platform.store.get("raw_corpus/shard-00000")
