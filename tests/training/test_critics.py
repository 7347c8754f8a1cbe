"""ArcFace and CLIP as critics of the texture phase: tiny random networks, real keys, gradients."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from model_code import base
from model_code.avatars.clipspec import draw_spec, render_spec
from model_code.avatars.seeds import head_seed
from model_code.backbones.clip import ClipVision
from model_code.backbones.load import load_identity, load_perceptual
from model_code.backbones.perceptual import PerceptualEncoder
from model_code.config import BackbonesConfig
from model_code.errors import InputError
from model_code.faces.align import ARCFACE_SIZE, ARCFACE_TEMPLATE, five_points, umeyama
from model_code.faces.arcface import ArcFace, IResNet
from model_code.training.data import to_network
from model_code.training.losses import video_distance
from tests.published import save_clip, save_vae

DEPTHS, WIDTHS = (2, 1, 2, 1), (4, 4, 6, 8, 8)


def save_arcface(folder: Path) -> Path:
    torch.manual_seed(0)
    network = IResNet(DEPTHS, WIDTHS, 16)
    for value in network.parameters():
        if value.ndim > 1:
            torch.nn.init.normal_(value, std=0.3)
    torch.nn.init.zeros_(network.fc.bias)  # or it would be all that is seen
    for name, value in network.named_buffers():
        if "running" in name:
            value.uniform_(0.5, 1.5)
    folder.mkdir(exist_ok=True)
    save_file(network.state_dict(), folder / "backbone.safetensors")
    return folder


@pytest.fixture(scope="module")
def arcface(tmp_path_factory: pytest.TempPathFactory) -> ArcFace:
    folder = save_arcface(tmp_path_factory.mktemp("arcface"))
    loaded = load_identity(BackbonesConfig(identity=str(folder)), None)
    assert isinstance(loaded, ArcFace)
    return loaded


@pytest.fixture(scope="module")
def crops() -> np.ndarray:
    spec = draw_spec(head_seed("FRESH", 910), 0, kind="natural", condition="plain", seconds=(1.0, 1.1))
    frames = render_spec(spec, 192)[0].frames[:2]
    return np.ascontiguousarray(frames[:, 20:164, 24:168])


def test_the_hundred_layers_have_the_published_names() -> None:
    with torch.device("meta"):
        network = IResNet()
    names = network.state_dict()
    assert sum(value.numel() for value in network.parameters()) == 65_156_160
    for name in ("conv1.weight", "prelu.weight", "layer1.0.downsample.1.running_var", "layer3.29.bn3.weight",
                 "layer4.2.conv2.weight", "bn2.bias", "fc.weight", "features.running_mean"):  # fmt: skip
        assert name in names
    assert names["fc.weight"].shape == (512, 25_088)


def test_depth_and_widths_come_from_the_file(arcface: ArcFace) -> None:
    network = arcface.network
    depths = tuple(len(network.get_submodule(f"layer{stage}")) for stage in range(1, 5))  # type: ignore[arg-type]
    assert depths == DEPTHS
    assert network(torch.zeros(2, 3, 112, 112)).shape == (2, 16)


def test_faces_are_seen_on_the_template(arcface: ArcFace, crops: np.ndarray) -> None:
    """The same pixels as OpenCV's warp by the similarity that takes each face's five points to the template."""
    video = to_network(crops).transpose(0, 1)
    landmarker = base.load("landmarker")
    small = torch.nn.functional.interpolate(video, (96, 96), mode="bilinear", antialias=True, align_corners=False)
    landmarks = (landmarker(small)[0] * crops.shape[1]).detach().numpy()
    moves = umeyama(five_points(landmarks), np.broadcast_to(ARCFACE_TEMPLATE, (len(crops), 5, 2)))
    moves[:, :, 2] += moves[:, :, :2].sum(-1) / 2 - 0.5  # our pixels' centres lie at +0.5, OpenCV's at 0
    side = (ARCFACE_SIZE, ARCFACE_SIZE)
    warps = [cv2.warpAffine(*pair, side, borderMode=cv2.BORDER_REPLICATE) for pair in zip(crops, moves, strict=True)]
    seen = torch.nn.functional.grid_sample(video, arcface.places(video), padding_mode="border", align_corners=False)
    ours = (seen.permute(0, 2, 3, 1).numpy() + 1) * 127.5
    assert np.abs(ours - np.stack(warps)).mean() < 1.0


def test_faces_are_seen_at_the_same_places_in_bf16(arcface: ArcFace, crops: np.ndarray) -> None:
    video = to_network(crops).transpose(0, 1)
    with torch.autocast("cpu", torch.bfloat16):
        places = arcface.places(video)
        large = torch.nn.functional.interpolate(video, (300, 300)).transpose(0, 1)[None].bfloat16()
        assert float(arcface.distance(large, large)) == pytest.approx(0, abs=0.01)
    torch.testing.assert_close(places, arcface.places(video))


def test_identity_has_gradients_and_a_zero(arcface: ArcFace, crops: np.ndarray) -> None:
    target = torch.nn.functional.interpolate(to_network(crops), (300, 300), mode="bilinear")[None]
    decoded = (target + 0.2 * torch.randn(target.shape, generator=torch.Generator().manual_seed(0))).requires_grad_()
    distance = arcface.distance(decoded, target)
    assert distance.shape == (1,)
    assert 0 < float(distance.detach()) < 2
    (gradient,) = torch.autograd.grad(distance.sum(), decoded)
    assert gradient.abs().sum() > 0
    assert float(arcface.distance(target, target)) == pytest.approx(0, abs=1e-5)
    assert not any(value.requires_grad for value in arcface.parameters())
    assert not arcface.train().training


def test_arcfaces_of_another_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds 0 \.safetensors files"):
        load_identity(BackbonesConfig(identity=str(tmp_path)), None)
    folder = save_arcface(tmp_path)
    state = load_file(folder / "backbone.safetensors")
    del state["layer2.0.bn3.weight"]
    save_file(state, folder / "backbone.safetensors")
    with pytest.raises(InputError, match=r"no whole IResNet .'layer2\.0\.bn3\.weight'"):
        load_identity(BackbonesConfig(identity=str(folder)), None)
    (folder / "backbone.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match="damaged or not whole"):
        load_identity(BackbonesConfig(identity=str(folder)), None)
    with pytest.raises(InputError, match="has no identity encoder"):
        load_identity(BackbonesConfig(), None)


def test_clip_sees_what_transformers_preparation_shows_it(tmp_path: Path) -> None:
    from transformers import CLIPModel

    folder = save_clip(tmp_path)
    clip = load_perceptual(BackbonesConfig(perceptual=str(folder)))
    assert isinstance(clip, ClipVision)
    pictures = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    mean, deviation = (
        torch.tensor(each)[:, None, None] for each in ((0.4815, 0.4578, 0.4082), (0.2686, 0.2613, 0.2758))
    )
    whole = CLIPModel.from_pretrained(folder).eval()
    with torch.no_grad():
        vision = whole.vision_model(pixel_values=(pictures - mean) / deviation).pooler_output
        wanted = torch.nn.functional.normalize(whole.visual_projection(vision), dim=-1)
    assert torch.allclose(clip.embed(2 * pictures - 1), wanted, atol=1e-3)
    videos = torch.rand(2, 2, 3, 3, 48, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1
    decoded = videos[0].requires_grad_()
    distance = video_distance(clip)(decoded, videos[1])
    assert distance.shape == (2,)
    (gradient,) = torch.autograd.grad(distance.sum(), decoded)
    assert gradient.abs().sum() > 0


def test_the_stand_ins_stay_where_nothing_is_named(tmp_path: Path) -> None:
    assert isinstance(load_perceptual(BackbonesConfig()), PerceptualEncoder)
    with pytest.raises(InputError, match=r"holds no config\.json .give a folder of clip"):
        load_perceptual(BackbonesConfig(perceptual=str(save_vae(tmp_path))))
