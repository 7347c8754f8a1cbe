"""An avatar: a vertex-coloured mesh with ARKit's 52 morph targets and 68 landmark vertices."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray

Kind = Literal["natural", "stylised", "nonhuman"]
KINDS: tuple[Kind, ...] = ("natural", "stylised", "nonhuman")
Floats = NDArray[np.float32]

ARKIT_NAMES: tuple[str, ...] = (
    "eyeBlinkLeft", "eyeLookDownLeft", "eyeLookInLeft", "eyeLookOutLeft", "eyeLookUpLeft", "eyeSquintLeft",
    "eyeWideLeft", "eyeBlinkRight", "eyeLookDownRight", "eyeLookInRight", "eyeLookOutRight", "eyeLookUpRight",
    "eyeSquintRight", "eyeWideRight", "jawForward", "jawLeft", "jawRight", "jawOpen", "mouthClose", "mouthFunnel",
    "mouthPucker", "mouthLeft", "mouthRight", "mouthSmileLeft", "mouthSmileRight", "mouthFrownLeft",
    "mouthFrownRight", "mouthDimpleLeft", "mouthDimpleRight", "mouthStretchLeft", "mouthStretchRight",
    "mouthRollLower", "mouthRollUpper", "mouthShrugLower", "mouthShrugUpper", "mouthPressLeft", "mouthPressRight",
    "mouthLowerDownLeft", "mouthLowerDownRight", "mouthUpperUpLeft", "mouthUpperUpRight", "browDownLeft",
    "browDownRight", "browInnerUp", "browOuterUpLeft", "browOuterUpRight", "cheekPuff", "cheekSquintLeft",
    "cheekSquintRight", "noseSneerLeft", "noseSneerRight", "tongueOut",
)  # fmt: skip


class Part(IntEnum):
    """What a face of the mesh belongs to."""

    SKIN = 0
    LIPS = 1
    TEETH = 2
    TONGUE = 3
    CAVITY = 4
    EYE = 5
    HAIR = 6
    BROW = 7
    CLOTH = 8
    ACCESSORY = 9


@dataclass(frozen=True)
class Avatar:
    """A head that can be posed by ARKit coefficients.

    Attributes:
        name: Shown to people.
        kind: natural, stylised or nonhuman.
        vertices: (V, 3) neutral positions; x to the viewer's right, y up, z towards the camera.
        faces: (F, 3) vertex indices, counter-clockwise seen from outside.
        colors: (V, 3) linear albedo in [0, 1].
        gloss: (V,) 0 matt to 1 shiny.
        part: (F,) `Part` of each face.
        morphs: (52, V, 3) displacement of each ARKit shape at weight 1, in the order of `ARKIT_NAMES`.
        landmarks: (68,) vertex index of each iBUG landmark.
        head_mask: (V,) 1 follows the head's pose, 0 stays with the body.
    """

    name: str
    kind: Kind
    vertices: Floats
    faces: NDArray[np.int32]
    colors: Floats
    gloss: Floats
    part: NDArray[np.uint8]
    morphs: Floats
    landmarks: NDArray[np.int32]
    head_mask: Floats

    def deform(self, coefficients: NDArray[np.floating]) -> Floats:
        """Posed vertices (T, V, 3) for ARKit `coefficients` (T, 52)."""
        return _blend(self.vertices, self.morphs, coefficients)


def interocular(avatar: Avatar) -> float:
    """Distance between the centres of the two eyes of the neutral mesh."""
    points = avatar.vertices[avatar.landmarks]
    return float(np.linalg.norm(points[42:48].mean(0) - points[36:42].mean(0)))


def mouth_curves(avatar: Avatar, coefficients: NDArray[np.floating]) -> Floats:
    """Opening, width and pucker of the mouth for ARKit `coefficients` (T, 52).

    Returns:
        (T, 3) in units of the interocular distance: vertical gap of the inner lips at the middle,
        distance of the mouth's corners, mean forward displacement of the lips against neutral.
    """
    lips = avatar.landmarks[48:68]
    neutral = avatar.vertices[lips]
    posed = _blend(neutral, avatar.morphs[:, lips], coefficients)
    opening = posed[:, 62 - 48, 1] - posed[:, 66 - 48, 1]
    width = np.linalg.norm(posed[:, 54 - 48] - posed[:, 48 - 48], axis=-1)
    pucker = (posed[..., 2] - neutral[:, 2]).mean(-1)
    return cast(Floats, (np.stack([opening, width, pucker], axis=-1) / interocular(avatar)).astype(np.float32))


def _blend(neutral: Floats, morphs: Floats, coefficients: NDArray[np.floating]) -> Floats:
    weights = np.asarray(coefficients, np.float32)
    if weights.ndim != 2 or weights.shape[1] != len(ARKIT_NAMES):
        raise ValueError(f"coefficients must be (T, {len(ARKIT_NAMES)}), not {weights.shape}")
    posed = weights @ morphs.reshape(len(ARKIT_NAMES), -1)
    return cast(Floats, posed.reshape(-1, *neutral.shape) + neutral)
