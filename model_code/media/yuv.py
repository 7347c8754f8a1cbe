"""Frames as decoders give them: a full-size luma plane and two half-size chroma planes (4:2:0)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from av import VideoFrame
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]

#: Luma weights (red, blue) of the colour matrices, by FFmpeg's number of the colour space.
_WEIGHTS = {1: (0.2126, 0.0722), 9: (0.2627, 0.0593), 10: (0.2627, 0.0593)}
_BT601 = (0.299, 0.114)


@dataclass(frozen=True)
class YuvFrame:
    """One upright 4:2:0 frame with square pixels and even sides.

    Attributes:
        y: (H, W) luma.
        u: (H/2, W/2) blue difference.
        v: (H/2, W/2) red difference.
        space: FFmpeg's number of the colour space (2: not stated, taken as BT.601 as FFmpeg does).
        full_range: Whether luma spans 0..255 instead of 16..235.
        transfer: FFmpeg's number of the transfer curve (2: not stated), carried to the output.
        primaries: And of the primaries.
    """

    y: U8
    u: U8
    v: U8
    space: int = 2
    full_range: bool = False
    transfer: int = 2
    primaries: int = 2

    @property
    def height(self) -> int:
        """Pixels."""
        return int(self.y.shape[0])

    @property
    def width(self) -> int:
        """Pixels."""
        return int(self.y.shape[1])

    def planes(self) -> tuple[U8, U8, U8]:
        """The three planes (y, u, v)."""
        return self.y, self.u, self.v

    def with_planes(self, planes: Sequence[U8]) -> YuvFrame:
        """A frame of other planes (y, u, v) in the same colours."""
        return replace(self, y=planes[0], u=planes[1], v=planes[2])

    def to_rgb(self) -> U8:
        """(H, W, 3) red, green, blue; chroma repeated."""
        u, v = (np.repeat(np.repeat(plane, 2, 0), 2, 1) for plane in (self.u, self.v))
        rgb = yuv_to_rgb(np.stack([self.y, u, v], -1).astype(np.float32), self.space, self.full_range)
        return np.clip(np.rint(rgb), 0, 255).astype(np.uint8)

    def to_av(self) -> VideoFrame:
        """The frame as PyAV encodes it."""
        h, w = self.y.shape
        packed = np.concatenate([self.y.reshape(-1), self.u.reshape(-1), self.v.reshape(-1)])
        frame = VideoFrame.from_ndarray(packed.reshape(h * 3 // 2, w), format="yuv420p")
        frame.colorspace = self.space
        frame.color_range = 2 if self.full_range else 1
        frame.color_trc, frame.color_primaries = self.transfer, self.primaries
        return frame


def _matrix(space: int) -> NDArray[np.float64]:
    """Full-range RGB (0..1) -> Y (0..1), U and V (-0.5..0.5)."""
    red, blue = _WEIGHTS.get(space, _BT601)
    luma = np.array([red, 1 - red - blue, blue])
    u = (np.array([0, 0, 1]) - luma) / (2 * (1 - blue))
    v = (np.array([1, 0, 0]) - luma) / (2 * (1 - red))
    return np.stack([luma, u, v])


def _scales(full_range: bool) -> tuple[F32, F32]:
    if full_range:
        return np.array([255, 255, 255], np.float32), np.array([0, 128, 128], np.float32)
    return np.array([219, 224, 224], np.float32), np.array([16, 128, 128], np.float32)


def yuv_to_rgb(yuv: F32, space: int, full_range: bool) -> F32:
    """(..., 3) YUV in 0..255 -> RGB in 0..255, unclipped."""
    gain, offset = _scales(full_range)
    inverse = np.linalg.inv(_matrix(space)) * 255
    matrix = (inverse / gain.astype(np.float64)).astype(np.float32)
    return ((yuv - offset) @ matrix.T).astype(np.float32, copy=False)


def rgb_to_yuv(rgb: F32, space: int, full_range: bool) -> F32:
    """(..., 3) RGB in 0..255 -> YUV in 0..255, unclipped."""
    gain, offset = _scales(full_range)
    matrix = (_matrix(space) * gain[:, None].astype(np.float64) / 255).astype(np.float32)
    return (rgb @ matrix.T + offset).astype(np.float32, copy=False)


def from_av(frame: VideoFrame, reformatter: VideoReformatter) -> YuvFrame:
    """The planes of a decoded frame, converted to 8-bit 4:2:0 where they are in another form."""
    space, full_range = int(frame.colorspace), int(frame.color_range) == 2
    transfer, primaries = int(frame.color_trc), int(frame.color_primaries)
    if frame.format.name == "yuvj420p":
        full_range = True
    elif frame.format.name != "yuv420p":
        space = 1 if frame.format.name.startswith(("rgb", "bgr", "gbr")) else space
        target = space if space in (1, 5, 6, 7, 9) else None
        frame = reformatter.reformat(frame, format="yuv420p", dst_colorspace=target, threads=1)
    planes = []
    for plane in frame.planes:
        stride = abs(plane.line_size)
        data = np.frombuffer(memoryview(plane), np.uint8)[: stride * plane.height].reshape(plane.height, stride)
        if plane.line_size < 0:  # rows from the bottom up
            data = data[::-1]
        planes.append(np.ascontiguousarray(data[:, : plane.width]))
    return YuvFrame(planes[0], planes[1], planes[2], space, full_range, transfer, primaries)
