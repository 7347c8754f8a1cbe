"""The heads that only the base's cards see, and what is trained without them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model_code import base
from model_code.config import PretrainConfig
from model_code.media.sample import ClipSample
from model_code.pretrain import footage
from model_code.pretrain.__main__ import STAGES
from model_code.pretrain.footage import Footage
from model_code.training import codec, landmarker, perceptual, prior
from model_code.training.perceptual import train_perceptual

CONFIG = PretrainConfig(heads=6, heldout_heads=2)


def head_of(path: Path) -> Footage:
    """Footage whose pictures have the head's number for a colour."""
    number = int(path.stem.removeprefix("pair_"))
    pictures, places = np.full((5, 8, 8, 3), number, np.uint8), np.zeros((5, 68, 2), np.float32)
    nothing = np.zeros(5, np.float32)
    clip = ClipSample(f"{number}", {}, pictures, places, nothing, nothing, nothing)
    return Footage(clip, clip, nothing, pictures, places, {"kind": "natural"})


def heads_in(part: Iterable[Any]) -> set[int]:
    return {int((each[0].frames if isinstance(each, tuple) else each).flat[0]) for each in part}


@pytest.mark.parametrize(
    ("module", "trains", "heldout"),
    [
        (codec, "train_codec", "heldout_crops"),
        (landmarker, "train_landmarker", "heldout_frames"),
        (perceptual, "train_perceptual", "heldout_crops"),
        (prior, "train_prior", "heldout"),
    ],
)
def test_every_network_is_scored_on_the_last_heads_and_learns_the_others(
    module: Any, trains: str, heldout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def watched(learned: Iterable[Any], *more: Any, **named: Any) -> dict[str, Any]:
        seen.append((heads_in(learned), heads_in(named[heldout])))
        return {}

    monkeypatch.setattr(module, trains, watched)
    monkeypatch.setattr(footage, "_load", head_of)
    monkeypatch.setattr(base, "load", lambda name, folder: None)
    STAGES[trains.removeprefix("train_")](tmp_path, tmp_path, CONFIG)
    assert seen == [({0, 1, 2, 3}, {4, 5})]


def test_the_perceptual_encoder_is_scored_on_clips_that_it_did_not_learn(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    crops = [rng.integers(0, 256, (3, 32, 32, 3), dtype=np.uint8) for _ in range(6)]
    attributes = [{"kind": kind} for kind in ("natural", "natural", "stylised", "stylised", "natural", "nonhuman")]
    card = train_perceptual(
        crops[:4], attributes[:4], tmp_path, 2, 0, 3, heldout_crops=crops[4:], heldout_attributes=attributes[4:]
    )
    assert card["data"] == {"clips": 6, "held_out_clips": 2, "frames": 18}
    assert card["scores"]["kind_accuracy"] in (0.0, 0.5, 1.0)  # of two clips
