"""Draws of natural, stylised and non-human identities."""

from __future__ import annotations

import colorsys
from typing import Any

import numpy as np

from model_code.avatars.params import Color, HeadParams

_SKINS = ("ffe0c8", "f6cda9", "edbf95", "e0ac7d", "cf9468", "b97c50", "9a6340", "7b4a30", "5d3723", "44281b")
_HAIR = (
    "0d0a09",
    "1c1310",
    "2b1b12",
    "3d2717",
    "5a3a1f",
    "7b5130",
    "a3793f",
    "c9a565",
    "8a3a1c",
    "b0542a",
    "8f8d8a",
    "d8d5cf",
)
_IRIS = ("3a2010", "4a2c14", "2a1709", "5d4a1e", "4a6a3a", "3f6f8f", "5b7f9c", "6d7a80")
_CLOTH = (
    "1f2d4a",
    "6b1f26",
    "20402c",
    "c9c4b8",
    "2a2a2c",
    "7a4f2a",
    "3c6e8f",
    "a8863a",
    "5b3d6e",
    "b5533c",
    "dfe3e8",
    "405a3a",
)


def srgb(code: str) -> Color:
    """Linear colour of a hexadecimal sRGB code."""
    values = [int(code[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    red, green, blue = (value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in values)
    return red, green, blue


def hue(
    rng: np.random.Generator, saturation: tuple[float, float] = (0.4, 0.9), value: tuple[float, float] = (0.3, 0.9)
) -> Color:
    """A random colour of bounded saturation and value, linear."""
    red, green, blue = colorsys.hsv_to_rgb(rng.random(), rng.uniform(*saturation), rng.uniform(*value))
    return red**2.2, green**2.2, blue**2.2


def _pick(rng: np.random.Generator, codes: tuple[str, ...]) -> Color:
    return srgb(codes[int(rng.integers(len(codes)))])


def _scaled(color: Color, factor: float | tuple[float, float, float]) -> Color:
    red, green, blue = np.clip(np.array(color) * np.array(factor), 0, 1).tolist()
    return red, green, blue


def _skin_tone(rng: np.random.Generator) -> Color:
    place = rng.uniform(0, len(_SKINS) - 1.001)
    low, share = int(place), place % 1
    a, b = np.array(srgb(_SKINS[low])), np.array(srgb(_SKINS[low + 1]))
    red, green, blue = ((a + (b - a) * share) * rng.normal(1, 0.03, 3)).clip(0.01, 0.95).tolist()
    return red, green, blue


def _luminance(color: Color) -> float:
    return float(np.dot((0.2126, 0.7152, 0.0722), color))


def _clothing(
    rng: np.random.Generator, choices: tuple[str, ...] = ("shirt", "tee", "hoodie", "dress", "suit")
) -> dict[str, Any]:
    return {"clothes": str(rng.choice(choices)), "cloth_color": _pick(rng, _CLOTH), "cloth_second": _pick(rng, _CLOTH)}


def _human(rng: np.random.Generator) -> dict[str, Any]:
    feminine = float(rng.beta(0.6, 0.6))
    age = float(rng.beta(1.3, 2.2))
    skin = _skin_tone(rng)
    darkness = 1 - float(np.mean(skin))
    hair_code = _HAIR[int(rng.integers(4 if darkness > 0.75 else 10))]
    if age > 0.55 and rng.random() < 0.7:
        hair_code = _HAIR[int(rng.integers(10, 12))]
    hair_color = srgb(hair_code)
    styles = ("bob", "long", "wavy", "bun", "ponytail", "curly", "side", "short") if feminine > 0.5 else (
        "bald", "buzz", "receding", "short", "side", "quiff", "curly", "afro", "short", "long")  # fmt: skip
    style = str(rng.choice(styles))
    volume = {"buzz": 0.02, "receding": 0.05, "afro": 0.2, "curly": 0.16}.get(style, float(rng.uniform(0.07, 0.14)))
    brow = _scaled(hair_color, (0.5, 0.42, 0.36) if sum(hair_color) > 0.6 else 1.0)
    # Brows whiten later than hair: brighter than the skin they would invert what makes eyes look like eyes.
    brow = _scaled(brow, min(1.0, 0.6 * _luminance(skin) / _luminance(brow)))
    # On dark skin a highlight is many times the skin's own light; the same gloss would look like varnish.
    most_gloss = 0.15 + 2 * _luminance(skin)
    lips = np.array(skin) * np.array([0.82, 0.47, 0.48])
    if feminine > 0.5 and rng.random() < 0.5:
        lips = lips * 0.4 + np.array(_pick(rng, ("a8323e", "8c2f39", "c0505a", "b03a2e", "7a2436"))) * 0.6
    return {
        "width": rng.normal(1.05, 0.055), "jaw_width": rng.normal(1.03 - 0.08 * feminine, 0.07),
        "skull": rng.normal(1.0, 0.03),
        "chin_length": rng.normal(1.04 - 0.1 * feminine, 0.09), "chin_forward": rng.normal(0.0, 0.03),
        "cheekbone": rng.normal(0.015, 0.015), "fullness": rng.normal(0.02, 0.035),
        "brow_ridge": rng.normal(0.015 - 0.02 * feminine, 0.012), "boxiness": rng.uniform(1.9, 2.3),
        "neck": rng.normal(1.05 - 0.2 * feminine, 0.06), "age": age,
        "eye_spacing": rng.normal(0, 0.017), "eye_width": rng.normal(0.15, 0.009),
        "eye_upper": rng.normal(0.066, 0.009), "eye_lower": rng.normal(0.047, 0.006),
        "eye_tilt": rng.normal(0.01, 0.01), "eye_area": rng.normal(1.16, 0.06), "hooded": rng.random(),
        "iris": _pick(rng, _IRIS[:4] if darkness > 0.7 else _IRIS), "iris_size": rng.uniform(0.44, 0.5),
        "pupil_size": rng.uniform(0.17, 0.24),
        "nose_length": rng.normal(0.0, 0.03), "nose_width": rng.normal(1.02, 0.17),
        "nose_height": rng.normal(0.92, 0.14),
        "nose_bridge": rng.normal(1.0, 0.18), "nose_hook": rng.normal(0.0, 0.015),
        "mouth_width": rng.normal(1.03, 0.1), "mouth_drop": rng.normal(0.0, 0.022),
        "upper_lip": float(np.clip(rng.normal(0.066, 0.018), 0.03, 0.12)),
        "lower_lip": float(np.clip(rng.normal(0.088, 0.02), 0.045, 0.14)),
        "lip_forward": rng.uniform(0.7, 1.3), "corner_lift": rng.normal(0.0, 0.012),
        "skin": skin, "lips": (float(lips[0]), float(lips[1]), float(lips[2])), "blush": rng.uniform(0.1, 0.55),
        "stubble": float(rng.choice([0.0, 0.0, 0.35, 0.6, 0.92])) if feminine < 0.5 else 0.0,
        "freckles": float(rng.random() < 0.15) * rng.uniform(0.3, 0.8),
        "makeup": float(feminine > 0.5) * rng.uniform(0, 0.7),
        "gloss": min(rng.uniform(0.15, 0.4), most_gloss), "teeth": _scaled((0.78, 0.75, 0.67), rng.uniform(0.85, 1.08)),
        "brow_color": brow,
        "brow_thickness": rng.uniform(0.018, 0.032) if feminine > 0.5 else rng.uniform(0.025, 0.045),
        "brow_arch": rng.uniform(0.0, 0.03), "brow_height": rng.normal(0.005, 0.012),
        "hair": style, "hair_color": hair_color, "hair_volume": volume, "hairline": rng.normal(0.0, 0.06),
        "parting": rng.choice([-1.0, 1.0]) * rng.uniform(0.2, 0.6), "ear_size": rng.normal(1.0, 0.1),
        "worn": "glasses" if rng.random() < 0.18 else "none",
        "worn_color": _pick(rng, ("0c0c0d", "3a2416", "5a5a60", "7a1c24", "23324d")), **_clothing(rng),
    }  # fmt: skip


def draw_natural(seed: int, rng: np.random.Generator) -> HeadParams:
    """A person."""
    return HeadParams(seed=seed, name=f"natural-{seed}", kind="natural", species="human", **_human(rng))


def draw_stylised(seed: int, rng: np.random.Generator) -> HeadParams:
    """A cartoon character: large eyes, small nose, strong colours."""
    traits = _human(rng)
    fantasy = rng.random() < 0.4
    skin = hue(rng, (0.25, 0.6), (0.6, 0.95)) if fantasy else _skin_tone(rng)
    hair_color = hue(rng, (0.5, 0.95), (0.35, 0.95))
    traits |= {
        "width": rng.normal(1.08, 0.06), "jaw_width": rng.normal(0.86, 0.08), "skull": rng.normal(1.08, 0.04),
        "chin_length": rng.normal(0.85, 0.09), "fullness": rng.uniform(0.02, 0.08), "brow_ridge": -0.03,
        "eye_area": rng.uniform(1.35, 1.7), "eye_upper": rng.uniform(0.085, 0.115),
        "eye_lower": rng.uniform(0.06, 0.085),
        "eye_width": rng.uniform(0.145, 0.16), "eye_spacing": rng.uniform(0.02, 0.045),
        "iris_size": rng.uniform(0.55, 0.66),
        "pupil_size": rng.uniform(0.26, 0.36), "iris": hue(rng, (0.5, 0.9), (0.4, 0.9)), "sclera": (0.93, 0.93, 0.93),
        "nose_height": rng.uniform(0.4, 0.75), "nose_width": rng.uniform(0.6, 0.9),
        "nose_length": rng.uniform(-0.06, 0.0),
        "mouth_width": rng.uniform(0.8, 1.1), "age": 0.0, "skin": skin, "lips": _scaled(skin, (0.8, 0.4, 0.45)),
        "blush": rng.uniform(0.3, 0.8), "stubble": 0.0, "gloss": rng.uniform(0.3, 0.5), "hair_color": hair_color,
        "brow_color": _scaled(hair_color, 0.5), "brow_height": rng.uniform(0.03, 0.07), "neck": rng.uniform(0.7, 0.85),
        "hair_volume": rng.uniform(0.12, 0.2), "teeth": (0.86, 0.86, 0.84), "cloth_color": hue(rng),
        "cloth_second": hue(rng),

        "hair": str(
            rng.choice(["short", "side", "quiff", "curly", "bob", "long", "wavy", "bun", "mohawk", "ponytail"])
        ),
        "ears": str(rng.choice(["human", "human", "pointed"])),
    }  # fmt: skip
    return HeadParams(seed=seed, name=f"stylised-{seed}", kind="stylised", species="cartoon", **traits)


_FUR = ("8a5a2e", "c98f4e", "e0c08a", "6e6a66", "b8b2a8", "3a2c24", "d9d4cc", "a8541e", "4a4a50", "8f7258")


def draw_nonhuman(seed: int, rng: np.random.Generator) -> HeadParams:
    """An animal, a robot, an alien or a lizard."""
    species = str(rng.choice(["cat", "dog", "fox", "bear", "mouse", "rabbit", "robot", "alien", "reptile"]))
    traits = _human(rng) | {
        "age": 0.0, "stubble": 0.0, "freckles": 0.0, "makeup": 0.0, "worn": "none", "hair": "bald", "brow_ridge": 0.0,
        "cheekbone": 0.0, "brows": False,
    }  # fmt: skip
    if species == "robot":
        skin = hue(rng, (0.02, 0.45), (0.45, 0.85))
        traits |= {
            "boxiness": rng.uniform(3.4, 5.0), "skull": rng.uniform(0.8, 1.0), "jaw_width": rng.uniform(1.0, 1.25),
            "chin_length": rng.uniform(0.75, 0.95), "skin": skin, "gloss": 0.9, "pattern": "panels", "ears": "disc",
            "ear_color": _scaled(skin, 0.5), "iris": hue(rng, (0.6, 1.0), (0.85, 1.0)), "sclera": (0.03, 0.03, 0.04),
            "iris_size": 0.6, "lips": _scaled(skin, 0.4), "blush": 0.0, "clothes": "armour", "neck": 0.75,
            "cloth_color": _scaled(skin, 0.6),
            "cloth_second": (0.05, 0.05, 0.06), "nose_height": rng.uniform(0.05, 0.3),
            "eye_area": rng.uniform(1.2, 1.45), "eye_tilt": 0.0, "eye_upper": 0.09, "eye_lower": 0.075,
            "worn": "antennae", "worn_color": hue(rng, (0.8, 1.0), (0.8, 1.0)), "hooded": 0.0,
        }  # fmt: skip
    elif species == "alien":
        skin = hue(rng, (0.3, 0.75), (0.45, 0.85))
        traits |= {
            "skull": rng.uniform(1.15, 1.4), "width": rng.uniform(1.05, 1.2), "jaw_width": rng.uniform(0.7, 0.85),
            "skin": skin,
            "eye_area": rng.uniform(1.35, 1.6), "eye_upper": 0.1, "eye_lower": 0.08,
            "eye_tilt": rng.uniform(0.02, 0.06),
            "eye_spacing": 0.04, "sclera": _scaled(hue(rng), 0.1), "iris": hue(rng, (0.5, 1.0), (0.6, 1.0)),
            "iris_size": 0.7,
            "nose_height": rng.uniform(0.1, 0.4), "nose_width": 0.7, "lips": _scaled(skin, (0.6, 0.5, 0.6)),
            "pattern": str(rng.choice(["none", "spots"])), "belly": _scaled(skin, 1.25), "gloss": 0.6, "blush": 0.1,
            "ears": str(rng.choice(["none", "pointed"])), "worn": str(rng.choice(["none", "antennae"])),
            "worn_color": hue(rng),
            "clothes": "armour", "neck": 0.7, "upper_lip": 0.04, "lower_lip": 0.055,
        }  # fmt: skip
    elif species == "reptile":
        skin = hue(rng, (0.4, 0.8), (0.3, 0.65))
        traits |= {
            "muzzle": rng.uniform(0.2, 0.35), "skin": skin, "belly": _scaled(skin, (2.0, 1.6, 1.5)), "slit_pupil": True,
            "iris": hue(rng, (0.8, 1.0), (0.8, 1.0)), "sclera": (0.6, 0.5, 0.15), "iris_size": 0.7,
            "eye_area": rng.uniform(1.2, 1.4),
            "nose_height": 0.3, "pattern": "spots", "lips": _scaled(skin, 0.6), "mouth_width": rng.uniform(1.2, 1.4),
            "blush": 0.0,
            "upper_lip": 0.035, "lower_lip": 0.04, "gloss": 0.55, "ears": "none", "eye_spacing": 0.04,
        }  # fmt: skip
    else:
        fur = _pick(rng, _FUR)
        light = float(rng.uniform(1.5, 2.5))
        traits |= {
            "muzzle": {"dog": 0.42, "fox": 0.46, "bear": 0.38, "cat": 0.24, "mouse": 0.36, "rabbit": 0.24}[species],
            "skin": fur, "belly": _scaled(fur, light) if rng.random() < 0.85 else None, "ears": species,
            "eye_area": rng.uniform(1.25, 1.5), "eye_upper": rng.uniform(0.09, 0.115),
            "eye_lower": rng.uniform(0.06, 0.08),
            "eye_spacing": rng.uniform(0.0, 0.04), "iris_size": rng.uniform(0.62, 0.75),
            "pupil_size": rng.uniform(0.2, 0.38),
            "slit_pupil": species in ("cat", "fox"),
            "iris": hue(rng, (0.6, 0.95), (0.45, 0.9)) if species == "cat" else srgb("4a2c14"),
            "pattern": str(rng.choice(["none", "mask", "stripes", "blaze", "spots"])),
            "nose_height": rng.uniform(0.1, 0.25),
            "nose_width": rng.uniform(0.9, 1.25), "lips": _scaled(fur, 0.35), "upper_lip": 0.045, "lower_lip": 0.06,
            "blush": 0.05,
            "gloss": 0.05, "width": rng.normal(1.2, 0.05), "fullness": rng.uniform(0.0, 0.06), "neck": 1.05,
            "chin_length": 0.68,
            "jaw_width": rng.uniform(1.05, 1.25), "skull": rng.uniform(0.92, 1.05), "mouth_drop": -0.06,
            "nose_length": -0.05, "chin_forward": -0.12,
        }  # fmt: skip
    return HeadParams(seed=seed, name=f"{species}-{seed}", kind="nonhuman", species=species, **traits)
