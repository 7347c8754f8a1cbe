"""Relit pairs: the identical relighting on V and V' (paper, pair construction).

A relighting is a field of gains over picture and time: intensity, chromaticity and a smooth directional ramp,
each standing still or moving. It is applied in linear light, so that gains behave as light does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

GAMMA = 2.2


@dataclass(frozen=True)
class Relighting:
    """Curves over T frames.

    Attributes:
        intensity: (T,) gain of all channels.
        chromaticity: (T, 3) gains with mean 1.
        angle: (T,) direction that the light comes from, in radians, 0 = the viewer's right.
        slope: (T,) how much brighter the lit side is, 0 to about 0.6.
        kind: `static` or `dynamic`.
    """

    intensity: NDArray[np.float32]
    chromaticity: NDArray[np.float32]
    angle: NDArray[np.float32]
    slope: NDArray[np.float32]
    kind: str

    def first(self, n_frames: int) -> Relighting:
        """The light of the first frames alone."""
        intensity, chromaticity = self.intensity[:n_frames], self.chromaticity[:n_frames]
        return Relighting(intensity, chromaticity, self.angle[:n_frames], self.slope[:n_frames], self.kind)


def draw_relighting(rng: np.random.Generator, n_frames: int) -> Relighting:
    """Draws a relighting; half of them stand still, half change colour, intensity and direction."""
    dynamic = bool(rng.random() < 0.5)
    time = np.arange(n_frames, dtype=np.float32) / 25.0

    def curve(low: float, high: float, swing: float) -> NDArray[np.float32]:
        value = rng.uniform(low, high)
        if not dynamic:
            return np.full(n_frames, value, np.float32)
        wave = np.sin(2 * np.pi * (rng.uniform(0.2, 0.8) * time + rng.random()))
        return np.asarray(value + swing * wave, np.float32)

    warmth, tint = curve(-0.25, 0.25, 0.12), curve(-0.08, 0.08, 0.04)
    chromaticity = np.stack([1 + warmth, 1 + tint, 1 - warmth], -1)
    return Relighting(
        intensity=np.exp(curve(-0.45, 0.35, 0.15)),
        chromaticity=(chromaticity / chromaticity.mean(-1, keepdims=True)).astype(np.float32),
        angle=curve(0.0, 2 * np.pi, 0.9),
        slope=np.clip(curve(0.1, 0.45, 0.15), 0.0, 0.6),
        kind="dynamic" if dynamic else "static",
    )


def relight(frames: NDArray[np.uint8], relighting: Relighting) -> NDArray[np.uint8]:
    """Applies a relighting to (T, H, W, 3) frames."""
    height, width = frames.shape[1:3]
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    angle = relighting.angle[:, None, None]
    ramp = np.tanh(1.5 * (np.cos(angle) * x - np.sin(angle) * y))
    gain = relighting.intensity[:, None, None] * (1 + relighting.slope[:, None, None] * ramp)
    light = (frames.astype(np.float32) / 255) ** GAMMA
    light = light * gain[..., None] * relighting.chromaticity[:, None, None]
    return np.rint(255 * np.clip(light, 0, 1) ** (1 / GAMMA)).astype(np.uint8)


def is_uniformly_lit(frames: NDArray[np.uint8], landmarks: NDArray[np.float32], tolerance: float = 0.3) -> bool:
    """Whether a clip's light stands still and comes from the front, as relighting assumes.

    Compares the cheeks' brightness with each other and over time; `tolerance` is the largest relative difference.
    """
    luma = frames.astype(np.float32).mean(-1)
    size = frames.shape[1]

    def patch(t: int, points: slice | list[int]) -> float:
        x, y = np.clip(landmarks[t, points].mean(0), 3, size - 4).astype(int)
        return float(luma[t, y - 3 : y + 4, x - 3 : x + 4].mean()) + 1.0

    times = range(0, len(frames), 5)
    left, right = (np.array([patch(t, points) for t in times]) for points in ([2, 31, 48], [14, 35, 54]))
    sides = np.abs(np.log(left / right)).mean()
    change = max(np.ptp(np.log(left)), np.ptp(np.log(right)))
    return bool(sides < tolerance and change < tolerance)
