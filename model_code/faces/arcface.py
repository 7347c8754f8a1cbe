"""ArcFace in torch: identity with gradients, for the texture expert's loss at full strength.

The weights are the user's own: any IResNet with the key names that the ArcFace and insightface trainers save (conv1,
bn1, prelu, layer1..layer4, bn2, fc, features), as safetensors. Depth and widths are read from the file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from model_code.errors import InputError
from model_code.faces.align import ARCFACE_SIZE, ARCFACE_TEMPLATE, five_points, umeyama
from model_code.faces.landmarker import Landmarker

STAGES = 4
SHARP = 2 * ARCFACE_SIZE
"""Crops larger than this are made smaller first: bilinear sampling alone would skip pixels."""


class _Unit(nn.Module):
    """Residual unit with the norm before its first convolution."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv1 = nn.Conv2d(inner, outer, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outer)
        self.prelu = nn.PReLU(outer)
        self.conv2 = nn.Conv2d(outer, outer, 3, stride=stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(outer)
        self.downsample = (
            nn.Sequential(nn.Conv2d(inner, outer, 1, stride=stride, bias=False), nn.BatchNorm2d(outer))
            if stride > 1 or inner != outer
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        hidden = self.bn3(self.conv2(hidden))
        return hidden + (x if self.downsample is None else self.downsample(x))


class IResNet(nn.Module):
    """ArcFace's network: faces (N, 3, 112, 112) in [-1, 1], on the template, to vectors (N, D).

    Args:
        depths: Units of the four stages (100 layers: 3, 13, 30, 3).
        widths: Channels of the stem and of the stages.
        embedding: D.
    """

    def __init__(
        self,
        depths: tuple[int, ...] = (3, 13, 30, 3),
        widths: tuple[int, ...] = (64, 64, 128, 256, 512),
        embedding: int = 512,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.prelu = nn.PReLU(widths[0])
        for stage in range(STAGES):
            inner, outer = widths[stage : stage + 2]
            units = [_Unit(inner if not place else outer, outer, 1 if place else 2) for place in range(depths[stage])]
            self.add_module(f"layer{stage + 1}", nn.Sequential(*units))
        self.bn2 = nn.BatchNorm2d(widths[-1])
        self.fc = nn.Linear(widths[-1] * (ARCFACE_SIZE // 2**STAGES) ** 2, embedding)
        self.features = nn.BatchNorm1d(embedding)

    def forward(self, faces: Tensor) -> Tensor:
        hidden = self.prelu(self.bn1(self.conv1(faces)))
        for stage in range(STAGES):
            hidden = self.get_submodule(f"layer{stage + 1}")(hidden)
        vectors: Tensor = self.features(self.fc(self.bn2(hidden).flatten(1)))
        return vectors

    @classmethod
    def of(cls, state: Mapping[str, Tensor]) -> IResNet:
        """The network that these weights belong to, holding them.

        Raises:
            InputError: They are those of another network, or not all.
        """
        units = [re.match(r"layer([1-4])\.(\d+)\.", name) for name in state]
        found = {(int(unit[1]), int(unit[2])) for unit in units if unit}
        depths = tuple(sum(stage == place for stage, _ in found) for place in range(1, STAGES + 1))
        try:
            ends = ("conv1", *(f"layer{place}.0.conv1" for place in range(1, STAGES + 1)))
            widths = tuple(int(state[f"{name}.weight"].shape[0]) for name in ends)
            network = cls(depths, widths, int(state["fc.weight"].shape[0]))
            wanted = [name for name in network.state_dict() if not name.endswith("num_batches_tracked")]
            missing = [name for name in wanted if name not in state]
            if missing:
                raise KeyError(missing[0])
            network.load_state_dict({name: state[name].float() for name in wanted}, strict=False)
        except (KeyError, RuntimeError) as error:
            told = " ".join(str(error).split())[:200]
            raise InputError(
                f"weights that are no whole IResNet ({told})", "give ArcFace's state dict, unchanged"
            ) from None
        return network


class ArcFace(nn.Module):
    """Identity of the faces in crops, each brought to ArcFace's template by the landmarks found in it.

    Args:
        network: ArcFace's.
        landmarker: Finds the eyes, nose and mouth corners.
    """

    def __init__(self, network: IResNet, landmarker: Landmarker) -> None:
        super().__init__()
        self.network, self.landmarker = network, landmarker
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> ArcFace:
        """Stays in evaluation mode: a judge's norms do not learn from what it judges."""
        return super().train(False)

    def places(self, crops: Tensor) -> Tensor:
        """(N, 112, 112, 2) where `grid_sample` finds the template's pixels in crops (N, 3, S, S) in [-1, 1].

        In float32 under autocast too: bf16 would move them by a third of a pixel.
        """
        size, side = self.landmarker.size, crops.shape[-1]
        with torch.no_grad(), torch.autocast(crops.device.type, enabled=False):
            small = F.interpolate(crops.float(), (size, size), mode="bilinear", antialias=True, align_corners=False)
            landmarks = (self.landmarker(small)[0] * side).cpu().numpy()
            five = five_points(landmarks)
            moves = umeyama(five, np.broadcast_to(ARCFACE_TEMPLATE, five.shape))
            linear = np.linalg.pinv(moves[:, :, :2])  # zero where no face gives a direction
            shift = -linear @ moves[:, :, 2:]
            # From the template's [-1, 1] to its pixels, to the crop's pixels, to the crop's [-1, 1].
            half = ARCFACE_SIZE / 2
            theta = np.concatenate([linear * half, linear.sum(-1, keepdims=True) * half + shift], -1) * (2 / side)
            theta[:, :, 2] -= 1
            chosen = torch.from_numpy(theta).to(small)
            return F.affine_grid(chosen, [len(crops), 3, ARCFACE_SIZE, ARCFACE_SIZE], align_corners=False)

    def embed(self, crops: Tensor, places: Tensor) -> Tensor:
        """Unit vectors (N, D) of crops (N, 3, S, S) seen at `places`; differentiable."""
        faces = F.grid_sample(crops, places, mode="bilinear", padding_mode="border", align_corners=False)
        return F.normalize(self.network(faces), dim=-1)

    def distance(self, first: Tensor, second: Tensor) -> Tensor:
        """The texture expert's loss, (B,): 1 - cosine of two videos (B, 3, T, S, S), averaged over frames.

        Both are seen where the second one's face lies: the target's, which is sharp.
        """
        batch, _, length = first.shape[:3]
        videos = [video.transpose(1, 2).flatten(0, 1).float() for video in (first, second)]
        if first.shape[-1] > SHARP:
            videos = [
                F.interpolate(video, (SHARP, SHARP), mode="bilinear", antialias=True, align_corners=False)
                for video in videos
            ]
        places = self.places(videos[1])
        ours, theirs = (self.embed(video, places) for video in videos)
        return 1 - (ours * theirs).sum(-1).view(batch, length).mean(1)

    @classmethod
    def from_pretrained(cls, folder: Path, landmarker: Landmarker) -> ArcFace:
        """Reads the one safetensors file in `folder`.

        Raises:
            InputError: There is none, or several, or it holds something else.
        """
        files = sorted(folder.glob("*.safetensors"))
        if len(files) != 1:
            raise InputError(f"'{folder}' holds {len(files)} .safetensors files", "give one, ArcFace's IResNet")
        try:
            state = load_file(files[0])
        except SafetensorError as error:
            raise InputError(f"'{files[0]}' is damaged or not whole ({error})", "convert it again") from None
        try:
            return cls(IResNet.of(state), landmarker)
        except InputError as error:
            raise InputError(f"'{files[0]}' holds {error.what}", error.remedy) from None
