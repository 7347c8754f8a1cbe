"""A small network from a face crop to the 68 iBUG landmarks and whether a face is there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from model_code.faces.crop import crop, crop_yuv, from_crop, scaled
from model_code.media.yuv import YuvFrame

BATCH = 64
"""Crops that are cut out and looked at together."""

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm_first, self.norm_second = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        hidden = functional.relu(self.norm_first(self.first(x)))
        return functional.relu(x + self.norm_second(self.second(hidden)))


def _down(inner: int, outer: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inner, outer, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(outer), nn.ReLU(inplace=True)
    )


class Landmarker(nn.Module):
    """Landmarks as the mean of one heat map each (integral regression), seen at a quarter of the crop's resolution.

    The crop is `model_code.faces.track.face_box` of the landmarks: the square that the whole chain cuts out.

    Args:
        size: Side of the crop in pixels, a multiple of 16.
        channels: Widths at 1/2, 1/4, 1/8 and 1/16 of the crop.
    """

    def __init__(self, size: int = 96, channels: tuple[int, int, int, int] = (16, 32, 64, 96)) -> None:
        super().__init__()
        self.size = size
        self.channels = tuple(channels)
        half, quarter, eighth, sixteenth = channels
        self.stem = _down(3, half)
        self.quarter = nn.Sequential(_down(half, quarter), _Residual(quarter))
        self.eighth = nn.Sequential(_down(quarter, eighth), _Residual(eighth))
        self.sixteenth = nn.Sequential(_down(eighth, sixteenth), _Residual(sixteenth), _Residual(sixteenth))
        self.up_sixteenth = nn.Conv2d(sixteenth, eighth, 1)
        self.up_eighth = nn.Conv2d(eighth, quarter, 1)
        self.heat = nn.Sequential(
            nn.Conv2d(quarter, quarter, 3, padding=1, bias=False),
            nn.BatchNorm2d(quarter),
            nn.ReLU(inplace=True),
            nn.Conv2d(quarter, 68, 1),
        )
        self.shape = nn.Linear(sixteenth, 68 * 2)  # what lies outside the crop or behind something: a global guess
        self.presence = nn.Linear(sixteenth, 1)
        nn.init.zeros_(self.shape.weight)
        nn.init.zeros_(self.shape.bias)

    def forward(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        """Crops (B, 3, size, size) in [-1, 1] -> landmarks (B, 68, 2) as shares of the side, face logits (B,)."""
        places, _, logits = self.look(crops)
        return places, logits

    def look(self, crops: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `forward`, with the heat maps (B, 68, size / 4, size / 4), before their softmax, in the middle."""
        quarter = self.quarter(self.stem(crops))
        eighth = self.eighth(quarter)
        deep = self.sixteenth(eighth)
        eighth = functional.relu(eighth + functional.interpolate(self.up_sixteenth(deep), scale_factor=2.0))
        quarter = functional.relu(quarter + functional.interpolate(self.up_eighth(eighth), scale_factor=2.0))
        heat = self.heat(quarter)
        side = heat.shape[-1]
        weight = heat.flatten(2).softmax(-1).unflatten(2, (side, side))
        axis = (torch.arange(side, device=heat.device, dtype=heat.dtype) + 0.5) / side
        places = torch.stack([(weight.sum(2) * axis).sum(-1), (weight.sum(3) * axis).sum(-1)], -1)
        pooled = deep.mean((2, 3))
        return places + self.shape(pooled).unflatten(1, (68, 2)), heat, self.presence(pooled).squeeze(1)

    @torch.inference_mode()
    def predict_crops(self, crops: U8, batch: int = BATCH) -> tuple[F32, F32]:
        """(N, S, S, 3) uint8 crops -> landmarks (N, 68, 2) in pixels of the crop, face confidence (N,) 0..1.

        Crops of any side S: they are looked at in the `size` that the network was trained at.
        """
        self.eval()
        device = self.presence.weight.device
        landmarks, confidence = np.zeros((len(crops), 68, 2), np.float32), np.zeros(len(crops), np.float32)
        for start in range(0, len(crops), batch):
            small = scaled(crops[start : start + batch], self.size)
            part = torch.from_numpy(np.ascontiguousarray(small)).to(device)
            places, logits = self(part.permute(0, 3, 1, 2).float().div_(127.5).sub_(1))
            landmarks[start : start + batch] = (places * crops.shape[1]).cpu().numpy()
            confidence[start : start + batch] = logits.sigmoid().cpu().numpy()
        return landmarks, confidence

    def predict(self, frames: U8 | Sequence[YuvFrame], boxes: F32) -> tuple[F32, F32]:
        """Landmarks of one face in each frame.

        Args:
            frames: (N, H, W, 3) uint8 of any size, or N frames in 4:2:0.
            boxes: (N, 4) x0, y0, x1, y1 in pixels: about the square that `face_box` gives.

        Returns:
            (N, 68, 2) landmarks in pixels of the frame, (N,) confidence that a face is there.
        """
        boxes = np.asarray(boxes, np.float32)
        landmarks, confidence = np.zeros((len(boxes), 68, 2), np.float32), np.zeros(len(boxes), np.float32)
        for start in range(0, len(boxes), BATCH):  # all crops of a frame's thousands of windows would fill memory
            part = slice(start, start + BATCH)
            some, around = frames[part], boxes[part]
            if isinstance(some, np.ndarray):
                crops = crop(some, around, self.size)
            else:
                crops = np.stack([crop_yuv(frame, box, self.size) for frame, box in zip(some, around, strict=True)])
            landmarks[part], confidence[part] = self.predict_crops(crops)
        return from_crop(landmarks, boxes, self.size), confidence

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes config.json and model.safetensors (half precision)."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = {
            name: (value.half() if value.is_floating_point() else value).contiguous().cpu()
            for name, value in self.state_dict().items()
        }
        save_file(state, folder / "model.safetensors")
        config = {"size": self.size, "channels": list(self.channels)}
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Landmarker:
        """Reads what `save_pretrained` wrote."""
        folder = Path(folder)
        config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        model = cls(config["size"], tuple(config["channels"]))
        state = load_file(folder / "model.safetensors")
        model.load_state_dict(
            {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
        )
        return model.to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
