"""Procedural heads: identities drawn from a seed, and the avatar built from them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from model_code.avatars.avatar import ARKIT_NAMES, KINDS, Avatar, Kind, Part
from model_code.avatars.features import brows, ears, eyes, mouth_interior, torso, worn
from model_code.avatars.hair import hair
from model_code.avatars.identity import draw_natural, draw_nonhuman, draw_stylised
from model_code.avatars.morphs import skin_morphs
from model_code.avatars.paint import paint
from model_code.avatars.params import HeadParams
from model_code.avatars.pieces import Piece
from model_code.avatars.sculpt import Face, sculpt
from model_code.seeding import rng_for

Array = NDArray[np.float64]

__all__ = ["HeadParams", "build_head", "draw_head"]


def draw_head(seed: int, kind: Kind | None = None) -> HeadParams:
    """Draws an identity; without `kind`, three in five are natural."""
    rng = rng_for("head", seed)
    drawn = KINDS[int(rng.choice(3, p=[0.6, 0.2, 0.2]))]
    draw = {"natural": draw_natural, "stylised": draw_stylised, "nonhuman": draw_nonhuman}[kind or drawn]
    return draw(seed, rng)


def build_head(params: HeadParams) -> Avatar:
    """Builds the avatar of an identity; the same parameters give the same bytes."""
    face = sculpt(params)
    morphs = skin_morphs(face)
    pieces = [_skin(face, morphs), *eyes(face), *mouth_interior(face, morphs), *brows(face, morphs)]
    pieces += [*ears(face), *hair(face), *torso(face), *worn(face)]
    return _join(face, pieces)


def _skin(face: Face, morphs: Array) -> Piece:
    colors, gloss = paint(face)
    faces = face.grid.faces
    ring = face.grid.mouth[:, 0][faces]
    part = np.where(((ring >= 0) & (ring <= 4)).all(1), Part.LIPS, Part.SKIN).astype(np.uint8)
    return Piece(face.points, faces, colors, gloss, part, morphs)


def _join(face: Face, pieces: list[Piece]) -> Avatar:
    offsets = np.cumsum([0] + [len(part.points) for part in pieces[:-1]])
    total = sum(len(part.points) for part in pieces)
    morphs = np.zeros((len(ARKIT_NAMES), total, 3), np.float32)
    for offset, part in zip(offsets, pieces, strict=True):
        if part.morphs is not None:
            morphs[:, offset : offset + len(part.points)] = part.morphs
    morphs[np.abs(morphs) < 1e-5] = 0.0
    masks = [np.ones(len(part.points)) if part.head_mask is None else part.head_mask for part in pieces]
    return Avatar(
        name=face.params.name,
        kind=face.params.kind,
        vertices=np.concatenate([part.points for part in pieces]).astype(np.float32),
        faces=np.concatenate([part.faces + offset for offset, part in zip(offsets, pieces, strict=True)]).astype(
            np.int32
        ),
        colors=np.concatenate([part.colors for part in pieces]).astype(np.float32),
        gloss=np.concatenate([part.gloss for part in pieces]).astype(np.float32),
        part=np.concatenate([part.part for part in pieces]),
        morphs=morphs,
        landmarks=face.grid.landmarks.astype(np.int32),
        head_mask=np.concatenate(masks).astype(np.float32),
    )
