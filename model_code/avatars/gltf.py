"""Avatars as binary glTF 2.0 (.glb): written and read by hand, nothing in the file can run code.

Ours: one mesh with POSITION, NORMAL, COLOR_0, `_GLOSS`, `_PART`, `_HEAD` and ARKit's 52 morph targets
named in ``mesh.extras.targetNames``; landmarks, kind and name in ``mesh.extras``. A foreign file needs
triangles and morph targets with ARKit's names (as avatar makers export them); landmarks are taken from
``extras.landmarks``, colours and parts from vertex colours and material names where there are any.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from model_code.avatars.avatar import ARKIT_NAMES, KINDS, Avatar, Kind, Part
from model_code.errors import InputError

MAX_BYTES = 256 * 1024 * 1024
MAX_VERTICES = 400_000
MAX_NUMBERS = 52 * 3 * MAX_VERTICES
_MAGIC, _JSON, _BIN = 0x46546C67, 0x4E4F534A, 0x004E4942
_TYPES = {5120: "i1", 5121: "u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
_WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}
_PART_WORDS = {
    Part.TEETH: ("teeth", "tooth"), Part.TONGUE: ("tongue",), Part.EYE: ("eye", "cornea", "iris"), Part.HAIR: ("hair",),
    Part.BROW: ("brow",), Part.CLOTH: ("cloth", "outfit", "shirt", "body", "top"), Part.LIPS: ("lips",),
    Part.CAVITY: ("cavity", "mouth"), Part.ACCESSORY: ("glasses", "hat", "accessor"),
}  # fmt: skip
_REMEDY = "export the head as binary glTF 2.0 (.glb) with ARKit's 52 morph targets, not compressed"


def save_avatar(avatar: Avatar, path: Path | str) -> None:
    """Writes `avatar` as a .glb; `load_avatar` gives back the same numbers."""
    binary = _Binary()
    vertices = avatar.vertices
    attributes = {
        "POSITION": binary.add(vertices, "VEC3", bounds=True),
        "NORMAL": binary.add(_normals(vertices, avatar.faces), "VEC3"),
        "COLOR_0": binary.add(avatar.colors, "VEC3"),
        "_GLOSS": binary.add(avatar.gloss, "SCALAR"),
        "_HEAD": binary.add(avatar.head_mask, "SCALAR"),
    }
    indices = binary.add(avatar.faces.reshape(-1).astype(np.uint32), "SCALAR")
    targets = [{"POSITION": binary.add(morph, "VEC3", bounds=True)} for morph in avatar.morphs]
    extras = {
        "targetNames": list(ARKIT_NAMES),
        "landmarks": avatar.landmarks.tolist(),
        "kind": avatar.kind,
        "part": binary.add(avatar.part.astype(np.uint8), "SCALAR"),
    }
    document = {
        "asset": {"version": "2.0", "generator": "xdub_platform"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "name": avatar.name}],
        "materials": [{"pbrMetallicRoughness": {"metallicFactor": 0.0, "roughnessFactor": 0.7}, "doubleSided": True}],
        "meshes": [
            {
                "name": avatar.name,
                "primitives": [{"attributes": attributes, "indices": indices, "material": 0, "targets": targets}],
                "weights": [0.0] * len(ARKIT_NAMES),
                "extras": extras,
            }
        ],
        "accessors": binary.accessors,
        "bufferViews": binary.views,
        "buffers": [{"byteLength": len(binary.data)}],
    }
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    chunks = (
        struct.pack("<II", len(text), _JSON) + text + struct.pack("<II", len(binary.data), _BIN) + bytes(binary.data)
    )
    Path(path).write_bytes(struct.pack("<III", _MAGIC, 2, 12 + len(chunks)) + chunks)


def load_avatar(path: Path | str) -> Avatar:
    """Reads a .glb written by `save_avatar`, or a foreign one with ARKit's morph targets.

    Raises:
        InputError: the file is not a sound .glb of bounded size, has no ARKit targets or no landmarks.
    """
    path = Path(path)
    try:
        return _load(path)
    except InputError:
        raise
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, struct.error, RecursionError) as error:
        raise InputError(f"{path}: not a sound glTF file: {type(error).__name__}: {error}", _REMEDY) from error


class _Binary:
    """The binary chunk under construction."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.views: list[dict[str, Any]] = []
        self.accessors: list[dict[str, Any]] = []

    def add(self, array: NDArray[Any], kind: str, bounds: bool = False) -> int:
        """Appends an array; returns its accessor."""
        code = {"f": 5126, "u": 5125 if array.dtype.itemsize == 4 else 5121}[array.dtype.kind]
        raw = np.ascontiguousarray(array, np.dtype(_TYPES[code])).tobytes()
        self.views.append({"buffer": 0, "byteOffset": len(self.data), "byteLength": len(raw)})
        self.data += raw + b"\0" * (-len(raw) % 4)
        accessor: dict[str, Any] = {
            "bufferView": len(self.views) - 1,
            "componentType": code,
            "count": len(array),
            "type": kind,
        }
        if bounds:
            accessor |= {"min": array.min(0).tolist(), "max": array.max(0).tolist()}
        self.accessors.append(accessor)
        return len(self.accessors) - 1


class _Reader:
    """Accessors of a parsed file, with every offset checked."""

    def __init__(self, path: Path, document: dict[str, Any], data: bytes) -> None:
        self.path, self.document, self.data = path, document, data

    def read(self, index: int) -> NDArray[Any]:
        """(count, width) numbers of an accessor; normalised integers as floats."""
        accessor = self.document["accessors"][_natural(index)]
        width, dtype = _WIDTHS[accessor["type"]], np.dtype(_TYPES[accessor["componentType"]])
        count = _natural(accessor["count"])
        if count * width > MAX_NUMBERS:
            raise InputError(
                f"{self.path}: accessor {index} holds {count} elements", f"stay below {MAX_VERTICES} vertices"
            )
        if "bufferView" in accessor:
            values = self._view(accessor["bufferView"], accessor.get("byteOffset", 0), count, width, dtype).copy()
        else:
            values = np.zeros((count, width), dtype)
        if "sparse" in accessor:
            sparse = accessor["sparse"]
            changed = _natural(sparse["count"])
            where, what = sparse["indices"], sparse["values"]
            at = self._view(
                where["bufferView"], where.get("byteOffset", 0), changed, 1, np.dtype(_TYPES[where["componentType"]])
            )
            values[at[:, 0].astype(np.int64)] = self._view(
                what["bufferView"], what.get("byteOffset", 0), changed, width, dtype
            )
        if accessor.get("normalized") and dtype.kind in "iu":
            return np.maximum(values.astype(np.float32) / np.iinfo(dtype).max, -1.0)
        return values

    def _view(self, index: int, offset: int, count: int, width: int, dtype: np.dtype[Any]) -> NDArray[Any]:
        view = self.document["bufferViews"][_natural(index)]
        if _natural(view.get("buffer", 0)) != 0 or "uri" in self.document["buffers"][0]:
            raise InputError(f"{self.path}: data outside the file", _REMEDY)
        start = _natural(view.get("byteOffset", 0)) + _natural(offset)
        stride = _natural(view.get("byteStride", 0)) or width * dtype.itemsize
        needed = (count - 1) * stride + width * dtype.itemsize if count else 0
        if stride < width * dtype.itemsize or start + needed > len(self.data):
            raise InputError(
                f"{self.path}: bufferView {index} reaches past the end of the file", "export it again; it is damaged"
            )
        if not count:
            return np.zeros((0, width), dtype)
        return np.ndarray((count, width), dtype, self.data, start, (stride, dtype.itemsize))


def _natural(value: Any) -> int:
    """`value` if it is a whole number from 0 on (negative indices would wrap around)."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r} is not a natural number")
    return value


def _load(path: Path) -> Avatar:
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise InputError(f"{path}: {size} bytes", f"avatars may have {MAX_BYTES} bytes")
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}", "give the path of a .glb file") from error
    document, data = _chunks(path, raw)
    reader = _Reader(path, document, data)
    pieces = []
    extras: dict[str, Any] = {}
    total = 0
    for matrix, mesh in _placed_meshes(document):
        here = mesh.get("extras") or {}
        extras = {**here, **extras} if "landmarks" in extras else {**extras, **here}
        for primitive in mesh["primitives"]:
            pieces.append(_primitive(reader, mesh, primitive, matrix))
            total += len(pieces[-1]["vertices"])
            if total > MAX_VERTICES:
                raise InputError(f"{path}: more than {MAX_VERTICES} vertices", "simplify the mesh")
    if not pieces or not any(piece["morphs"].any() for piece in pieces):
        raise InputError(f"{path}: no morph target has an ARKit name such as jawOpen", _REMEDY)
    offsets = np.cumsum([0] + [len(piece["vertices"]) for piece in pieces[:-1]])
    joined = {
        key: np.concatenate([piece[key] for piece in pieces], axis=1 if key == "morphs" else 0) for key in pieces[0]
    }
    joined["faces"] = np.concatenate([piece["faces"] + np.int32(at) for piece, at in zip(pieces, offsets, strict=True)])
    landmarks = np.asarray(extras.get("landmarks", []), dtype=np.int64)
    if landmarks.shape != (68,) or landmarks.min() < 0 or landmarks.max() >= total:
        remedy = "put the vertex indices of the 68 iBUG landmarks, over all primitives, into mesh.extras.landmarks"
        raise InputError(f"{path}: {landmarks.size} sound landmarks of 68", remedy)
    kind = extras.get("kind", "natural")
    name = next(
        (str(node["name"])[:100] for node in document.get("nodes", []) if "name" in node and "mesh" in node), path.stem
    )
    if "part" in extras and len(pieces) == 1:
        joined["part"] = reader.read(extras["part"])[:, 0].astype(np.uint8)
    if len(joined["part"]) != len(joined["faces"]) or int(joined["part"].max()) > max(Part):
        raise InputError(
            f"{path}: {len(joined['part'])} parts for {len(joined['faces'])} faces", "leave extras.part out"
        )
    return Avatar(
        name=name,
        kind=cast(Kind, kind if kind in KINDS else "natural"),
        landmarks=landmarks.astype(np.int32),
        **{key: np.ascontiguousarray(value) for key, value in joined.items()},
    )


def _chunks(path: Path, raw: bytes) -> tuple[dict[str, Any], bytes]:
    """The JSON document and the binary chunk."""
    if len(raw) < 20 or struct.unpack_from("<I", raw)[0] != _MAGIC:
        raise InputError(f"{path}: not a binary glTF file", _REMEDY)
    _, version, length = struct.unpack_from("<III", raw)
    if version != 2 or length > len(raw):
        raise InputError(f"{path}: glTF version {version}, {len(raw)} of {length} bytes", "export it again as glTF 2.0")
    found: dict[int, bytes] = {}
    at = 12
    while at + 8 <= length:
        size, kind = struct.unpack_from("<II", raw, at)
        if at + 8 + size > length:
            raise InputError(f"{path}: a chunk of {size} bytes reaches past the end", "export it again; it is damaged")
        found.setdefault(kind, raw[at + 8 : at + 8 + size])
        at += 8 + size
    document = json.loads(found[_JSON])
    if not isinstance(document, dict):
        raise ValueError("the JSON chunk is not an object")
    required = document.get("extensionsRequired", [])
    if required:
        raise InputError(f"{path}: needs the glTF extensions {', '.join(map(str, required))}", _REMEDY)
    return document, found.get(_BIN, b"")


def _placed_meshes(document: dict[str, Any]) -> list[tuple[NDArray[np.float64], dict[str, Any]]]:
    """Every mesh of the first scene with its matrix; all meshes if there is no scene."""
    meshes, nodes = document.get("meshes", []), document.get("nodes", [])
    scenes = document.get("scenes") or []
    if not scenes:
        return [(np.eye(4), mesh) for mesh in meshes]
    placed: list[tuple[NDArray[np.float64], dict[str, Any]]] = []
    seen: set[int] = set()
    waiting = [
        (_natural(index), np.eye(4)) for index in reversed(scenes[_natural(document.get("scene", 0))].get("nodes", []))
    ]
    while waiting:
        index, above = waiting.pop()
        if index in seen:
            raise ValueError(f"node {index} is its own ancestor or has two parents")
        seen.add(index)
        node = nodes[index]
        matrix = above @ _matrix(node)
        if "mesh" in node:
            # a skinned mesh is placed by its joints; in its bind pose the node's matrix does not count
            placed.append((np.eye(4) if "skin" in node else matrix, meshes[_natural(node["mesh"])]))
        waiting += [(_natural(child), matrix) for child in reversed(node.get("children", []))]
    return placed


def _matrix(node: dict[str, Any]) -> NDArray[np.float64]:
    if "matrix" in node:
        return np.asarray(node["matrix"], float).reshape(4, 4).T
    x, y, z, w = (float(value) for value in node.get("rotation", (0, 0, 0, 1)))
    rotation = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
    matrix = np.eye(4)
    matrix[:3, :3] = rotation * np.asarray(node.get("scale", (1, 1, 1)), float)
    matrix[:3, 3] = np.asarray(node.get("translation", (0, 0, 0)), float)
    return matrix


def _primitive(
    reader: _Reader, mesh: dict[str, Any], primitive: dict[str, Any], matrix: NDArray[np.float64]
) -> dict[str, NDArray[Any]]:
    """Arrays of one primitive in the world's frame."""
    if primitive.get("mode", 4) != 4:
        raise InputError(f"{reader.path}: a primitive is not made of triangles", _REMEDY)
    attributes = primitive["attributes"]
    local = reader.read(attributes["POSITION"]).astype(np.float32)
    count = len(local)
    placed = bool((matrix != np.eye(4)).any())
    vertices = (local @ matrix[:3, :3].T + matrix[:3, 3]).astype(np.float32) if placed else local
    faces = reader.read(primitive["indices"])[:, 0].astype(np.int64) if "indices" in primitive else np.arange(count)
    if len(faces) % 3 or (len(faces) and faces.max() >= count):
        raise InputError(
            f"{reader.path}: triangle indices do not fit {count} vertices", "export it again; it is damaged"
        )
    material = (
        reader.document.get("materials", [{}])[_natural(primitive["material"])] if "material" in primitive else {}
    )
    base = material.get("pbrMetallicRoughness", {}).get("baseColorFactor", (1.0, 1.0, 1.0, 1.0))
    colors = (
        reader.read(attributes["COLOR_0"])[:, :3].astype(np.float32)
        if "COLOR_0" in attributes
        else np.ones((count, 3), np.float32)
    )
    names = (mesh.get("extras") or {}).get("targetNames", [])
    morphs = np.zeros((len(ARKIT_NAMES), count, 3), np.float32)
    by_name = {name.lower(): index for index, name in enumerate(ARKIT_NAMES)}
    by_name |= {name.lower().replace("left", "_l").replace("right", "_r"): index for name, index in _sided(by_name)}
    for name, target in zip(names, primitive.get("targets", []), strict=False):
        index = by_name.get(str(name).split(".")[-1].lower())
        if index is not None and "POSITION" in target:
            delta = reader.read(target["POSITION"]).astype(np.float32)
            if delta.shape != (count, 3):
                raise InputError(f"{reader.path}: morph target {name} has {len(delta)} of {count} vertices", _REMEDY)
            morphs[index] = (delta @ matrix[:3, :3].T).astype(np.float32) if placed else delta
    label = f"{mesh.get('name', '')} {material.get('name', '')}".lower()
    part = next((kind for kind, words in _PART_WORDS.items() if any(word in label for word in words)), Part.SKIN)
    result: dict[str, NDArray[Any]] = {
        "vertices": vertices,
        "faces": faces.reshape(-1, 3).astype(np.int32),
        "colors": np.clip(colors * np.asarray(base[:3], np.float32), 0, 1),
        "gloss": _scalar(reader, attributes, "_GLOSS", count, 0.25),
        "head_mask": _scalar(reader, attributes, "_HEAD", count, 0.0 if part == Part.CLOTH else 1.0),
        "part": np.full(len(faces) // 3, part, np.uint8),
        "morphs": morphs,
    }
    for key in ("vertices", "colors", "gloss", "head_mask", "morphs"):
        if len(result[key]) not in (count, len(ARKIT_NAMES)) or not np.isfinite(result[key]).all():
            raise InputError(
                f"{reader.path}: {key} holds other than {count} finite numbers", "export it again; it is damaged"
            )
    return result


def _sided(by_name: dict[str, int]) -> list[tuple[str, int]]:
    return [(name, index) for name, index in by_name.items() if name.endswith(("left", "right"))]


def _scalar(reader: _Reader, attributes: dict[str, Any], key: str, count: int, default: float) -> NDArray[np.float32]:
    if key in attributes:
        return reader.read(attributes[key])[:, 0].astype(np.float32)
    return np.full(count, default, np.float32)


def _normals(vertices: NDArray[np.float32], faces: NDArray[np.int32]) -> NDArray[np.float32]:
    """Area-weighted unit normals (V, 3); vertices without a face look at the camera."""
    corners = vertices[faces].astype(np.float64)
    flat = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals = np.zeros(vertices.shape)
    for corner in range(3):
        np.add.at(normals, faces[:, corner], flat)
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    normals = np.where(length > 1e-12, normals / np.maximum(length, 1e-12), [0.0, 0.0, 1.0])
    return cast("NDArray[np.float32]", normals.astype(np.float32))
