"""Avatars survive the round trip through .glb; bad files are told in one line."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model_code.avatars.avatar import Avatar
from model_code.avatars.gltf import load_avatar, save_avatar
from model_code.avatars.head import build_head, draw_head
from model_code.errors import InputError


@pytest.fixture(scope="module")
def avatar() -> Avatar:
    return build_head(draw_head(1, "natural"))


@pytest.fixture(scope="module")
def saved(avatar: Avatar, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("glb") / "head.glb"
    save_avatar(avatar, path)
    return path


def _rewritten(source: Path, target: Path, change: object) -> Path:
    """The same file with its JSON changed by `change(document)`."""
    raw = source.read_bytes()
    size = struct.unpack_from("<I", raw, 12)[0]
    document = json.loads(raw[20 : 20 + size])
    change(document)  # type: ignore[operator]
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    rest = raw[20 + size :]
    target.write_bytes(
        struct.pack("<IIIII", 0x46546C67, 2, 20 + len(text) + len(rest), len(text), 0x4E4F534A) + text + rest
    )
    return target


def test_round_trip_is_exact(avatar: Avatar, saved: Path) -> None:
    loaded = load_avatar(saved)
    for field in dataclasses.fields(Avatar):
        before, after = getattr(avatar, field.name), getattr(loaded, field.name)
        if isinstance(before, np.ndarray):
            assert before.dtype == after.dtype, field.name
            assert np.array_equal(before, after), field.name
        else:
            assert before == after, field.name


def test_foreign_file(avatar: Avatar, saved: Path, tmp_path: Path) -> None:
    """Other names' case, a moved and scaled node, no colours and no parts of ours."""

    def foreign(document: dict) -> None:  # type: ignore[type-arg]
        mesh = document["meshes"][0]
        mesh["extras"].pop("part")
        mesh["extras"]["targetNames"] = [
            f"blendShape1.{name}".replace("Left", "_L") for name in mesh["extras"]["targetNames"]
        ]
        for key in ("COLOR_0", "_GLOSS", "_HEAD", "NORMAL"):
            mesh["primitives"][0]["attributes"].pop(key)
        document["nodes"] = [{"children": [1], "scale": [2, 2, 2]}, {"mesh": 0, "translation": [0, 1, 0]}]

    loaded = load_avatar(_rewritten(saved, tmp_path / "foreign.glb", foreign))
    assert np.allclose(loaded.vertices, 2 * (avatar.vertices + np.array([0, 1, 0])), atol=1e-5)
    assert np.allclose(loaded.morphs, 2 * avatar.morphs, atol=1e-5)
    assert loaded.colors.shape == avatar.colors.shape


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("ARKit", lambda d: d["meshes"][0]["extras"].update(targetNames=["a"] * 52)),
        ("landmarks", lambda d: d["meshes"][0]["extras"].pop("landmarks")),
        ("landmarks", lambda d: d["meshes"][0]["extras"].update(landmarks=[10**7] * 68)),
        ("past the end", lambda d: d["bufferViews"][0].update(byteOffset=10**8)),
        ("natural number", lambda d: d["bufferViews"][0].update(byteOffset=-4)),
        ("elements", lambda d: d["accessors"][0].update(count=10**12)),
        ("extensions", lambda d: d.update(extensionsRequired=["KHR_draco_mesh_compression"])),
        ("ancestor", lambda d: d["nodes"][0].update(children=[0])),
        ("not a sound", lambda d: d.pop("accessors")),
    ],
)
def test_bad_content(saved: Path, tmp_path: Path, key: str, change: object) -> None:
    with pytest.raises(InputError, match=key) as caught:
        load_avatar(_rewritten(saved, tmp_path / "bad.glb", change))
    assert "\n" not in str(caught.value)


def test_bad_files(saved: Path, tmp_path: Path) -> None:
    for name, content in (("empty", b""), ("text", b"this is a text named .glb"), ("cut", saved.read_bytes()[:5000])):
        path = tmp_path / f"{name}.glb"
        path.write_bytes(content)
        with pytest.raises(InputError):
            load_avatar(path)
    with pytest.raises(InputError):
        load_avatar(tmp_path / "missing.glb")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 6000), value=st.integers(0, 255))
def test_damage_never_escapes(saved: Path, tmp_path: Path, at: int, value: int) -> None:
    """One changed byte in the header or the JSON gives an avatar or an InputError, nothing else."""
    raw = bytearray(saved.read_bytes())
    raw[at] = value
    path = tmp_path / "damaged.glb"
    path.write_bytes(bytes(raw))
    with contextlib.suppress(InputError):
        load_avatar(path)
