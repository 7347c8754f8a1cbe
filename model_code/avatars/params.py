"""What makes one procedural head differ from another."""

from __future__ import annotations

from dataclasses import dataclass

from model_code.avatars.avatar import Kind

Color = tuple[float, float, float]


@dataclass(frozen=True)
class HeadParams:
    """A head's identity. Lengths are in the avatar's unit (the eyes are about 0.6 apart); factors are around 1.

    Colours are linear albedo. `species` names the family ("human", "cartoon", "cat", "robot", ...).
    """

    seed: int
    name: str
    kind: Kind
    species: str
    # skull
    width: float = 1.0
    jaw_width: float = 1.0
    skull: float = 1.0
    chin_length: float = 1.0
    chin_forward: float = 0.0
    cheekbone: float = 0.0
    fullness: float = 0.0
    brow_ridge: float = 0.0
    boxiness: float = 2.0
    neck: float = 1.0
    age: float = 0.2
    # eyes
    eye_spacing: float = 0.0
    eye_width: float = 0.15
    eye_upper: float = 0.068
    eye_lower: float = 0.046
    eye_tilt: float = 0.01
    eye_area: float = 1.0
    hooded: float = 0.3
    iris: Color = (0.1, 0.06, 0.03)
    iris_size: float = 0.46
    pupil_size: float = 0.2
    slit_pupil: bool = False
    sclera: Color = (0.82, 0.8, 0.77)
    # nose and mouth
    nose_length: float = 0.0
    nose_width: float = 1.0
    nose_height: float = 1.0
    nose_bridge: float = 1.0
    nose_hook: float = 0.0
    mouth_width: float = 1.0
    mouth_drop: float = 0.0
    upper_lip: float = 0.075
    lower_lip: float = 0.09
    lip_forward: float = 1.0
    corner_lift: float = 0.0
    muzzle: float = 0.0
    # surface
    skin: Color = (0.6, 0.35, 0.22)
    belly: Color | None = None
    lips: Color = (0.45, 0.15, 0.12)
    blush: float = 0.3
    stubble: float = 0.0
    freckles: float = 0.0
    makeup: float = 0.0
    pattern: str = "none"
    gloss: float = 0.25
    teeth: Color = (0.75, 0.72, 0.63)
    tongue: Color = (0.5, 0.16, 0.16)
    # brows, hair, ears, clothes, things worn
    brow_color: Color = (0.05, 0.03, 0.02)
    brow_thickness: float = 0.035
    brow_arch: float = 0.02
    brow_height: float = 0.0
    brows: bool = True
    hair: str = "short"
    hair_color: Color = (0.05, 0.03, 0.02)
    hair_volume: float = 0.12
    hairline: float = 0.0
    parting: float = 0.0
    ears: str = "human"
    ear_size: float = 1.0
    ear_color: Color | None = None
    clothes: str = "shirt"
    cloth_color: Color = (0.1, 0.2, 0.4)
    cloth_second: Color = (0.7, 0.7, 0.7)
    worn: str = "none"
    worn_color: Color = (0.02, 0.02, 0.02)
