"""The dubbing model: windows, company, experts, folder."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from peft import LoraConfig
from safetensors import safe_open

from model_code.backbones.audio import AudioEncoder, AudioEncoderConfig
from model_code.backbones.codec import BlockCodec, BlockCodecConfig
from model_code.backbones.transformer import DubbingTransformer
from model_code.config import FlowConfig, TransformerConfig
from model_code.dubbing.model import (
    LORA_FILE,
    DubberConfig,
    DubbingPipelineModel,
    DubItem,
    add_expert,
    load_transformer,
    save_expert,
    save_transformer,
)
from model_code.dubbing.strand import Strand
from model_code.errors import InputError
from model_code.faces.masks import inpaint_mask
from model_code.training.data import to_frames

SIZE = 32
FLOW = FlowConfig(sampling_steps=4, audio_guidance=1.0)


def transformer(context: int, experts: tuple[str, ...] = ()) -> DubbingTransformer:
    torch.manual_seed(0)
    model = DubbingTransformer.build(
        TransformerConfig(
            dim=24,
            num_layers=1,
            num_heads=2,
            ffn_dim=32,
            freq_dim=16,
            in_channels=12,
            out_channels=12,
            context_channels=context,
            audio_dim=8,
            audio_inner_dim=16,
            audio_heads=2,
            audio_layers=1,
            refiner_width=8,
            refiner_layers=1,
        )
    )
    torch.nn.init.normal_(model.head.head.weight, std=0.1)
    for name in experts:
        model.add_adapter(LoraConfig(r=2, target_modules=["q", "v"]), adapter_name=name)
        for parameter, value in model.named_parameters():
            if f"lora_B.{name}" in parameter:
                torch.nn.init.normal_(value, std=0.5)
    return model


@pytest.fixture(scope="module")
def codec() -> BlockCodec:
    codec = BlockCodec(BlockCodecConfig(channels=12, refiner_width=8, refiner_blocks=1))
    codec.fit(0.3 * torch.randn(3000, 768, generator=torch.Generator().manual_seed(0)))
    codec.half().float()  # what a folder keeps
    return codec.eval()


@pytest.fixture(scope="module")
def audio_encoder() -> AudioEncoder:
    torch.manual_seed(0)
    return AudioEncoder(AudioEncoderConfig(width=16, features=8)).half().float().eval()


@pytest.fixture(scope="module")
def editor(codec: BlockCodec, audio_encoder: AudioEncoder) -> DubbingPipelineModel:
    config = DubberConfig(mode="editor", flow=FLOW, crop_size=SIZE, noise_retries=0)  # random weights give noise
    return DubbingPipelineModel(config, codec, audio_encoder, transformer(0))


def clip(seed: int, frames: int) -> DubItem:
    rng = np.random.default_rng(seed)
    return DubItem(
        rng.integers(0, 256, (frames, SIZE, SIZE, 3), dtype=np.uint8),
        rng.normal(0, 0.1, frames * 640).astype(np.float32),
        seed,
        rng.uniform(8, 24, (frames, 68, 2)).astype(np.float32),
    )


@pytest.mark.parametrize("frames", [1, 10, 25, 26, 45, 70])
def test_any_length_comes_back(editor: DubbingPipelineModel, frames: int) -> None:
    item = clip(0, frames)
    out = editor.dub_crops(item.frames, item.samples, seed=1)
    assert out.shape == item.frames.shape
    assert out.dtype == np.uint8


def test_same_seed_same_bytes_and_another_seed_others(editor: DubbingPipelineModel) -> None:
    item = clip(0, 30)
    first, again, other = (editor.dub_crops(item.frames, item.samples, seed) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_company_changes_nothing(editor: DubbingPipelineModel) -> None:
    items = [clip(seed, frames) for seed, frames in ((0, 50), (1, 25), (2, 12))]
    together = editor.dub_many(items, batch_size=2)
    for item, out in zip(items, together, strict=True):
        alone = editor.dub_many([item])[0]
        assert np.abs(alone.astype(int) - out).max() <= 1


def test_the_second_window_goes_on_from_the_first(editor: DubbingPipelineModel) -> None:
    item = clip(0, 45)
    silence = np.zeros_like(item.samples)  # or the two would hear another end
    short, long = editor.dub_crops(item.frames[:25], silence, 1), editor.dub_crops(item.frames, silence, 1)
    assert np.array_equal(short, long[:25])
    changed = item.frames.copy()
    changed[:25] = 255 - changed[:25]
    assert not np.array_equal(long[25:], editor.dub_crops(changed, silence, 1)[25:])


def test_without_motion_frames_every_window_begins_anew(codec: BlockCodec, audio_encoder: AudioEncoder) -> None:
    config = DubberConfig(mode="editor", flow=FLOW, crop_size=SIZE, overlap_frames=0, noise_retries=0)
    model = DubbingPipelineModel(config, codec, audio_encoder, transformer(0))
    item = clip(0, 70)
    changed = replace(item, frames=np.concatenate([255 - item.frames[:25], item.frames[25:]]))
    (whole, other), parts = model.dub_many([item, changed]), model.dub_stream(item.frames, 70, item.samples, item.seed)
    assert [len(part.frames) for part in parts] == [25, 25, 20]
    assert whole.shape == item.frames.shape
    assert not np.array_equal(whole[:25], other[:25])
    assert np.array_equal(whole[25:], other[25:])
    with pytest.raises(InputError, match="no seam"):
        DubbingPipelineModel(
            config.model_copy(update={"stitching": "latents"}), codec, audio_encoder, model.transformer
        )


def test_the_releases_way_to_join_windows_and_to_guide(codec: BlockCodec, audio_encoder: AudioEncoder) -> None:
    item = clip(0, 70)
    flow = FLOW.model_copy(update={"guidance_schedule": "release", "reference_guidance": 2.5, "border": True})
    net = transformer(0)

    def dub(frames: int, **changes: object) -> np.ndarray:
        config = DubberConfig(mode="editor", crop_size=SIZE, **{"flow": FLOW, **changes})
        model = DubbingPipelineModel(config, codec, audio_encoder, net)
        return model.dub_crops(item.frames[:frames], np.zeros(frames * 640, np.float32), 1)

    plain, joined = dub(70), dub(70, stitching="latents")
    assert joined.shape == plain.shape
    assert np.array_equal(joined[:17], plain[:17]), "what lies before the first seam is as it was"
    assert not np.array_equal(joined[21:25], plain[21:25]), "the seam is a mean"
    assert np.array_equal(dub(25, stitching="latents"), dub(25))
    guided, bordered = dub(25, flow=flow), dub(25, flow=flow.model_copy(update={"border": False}))
    assert not np.array_equal(guided, bordered)
    assert not np.array_equal(bordered, dub(25))


@pytest.mark.parametrize("stitching", ["pixels", "latents"])
def test_a_stream_is_dubbed_while_it_comes(
    codec: BlockCodec, audio_encoder: AudioEncoder, stitching: Literal["pixels", "latents"]
) -> None:
    """Window by window, no further ahead, and the same as the whole."""
    config = DubberConfig(mode="editor", flow=FLOW, crop_size=SIZE, stitching=stitching, noise_retries=0)
    model = DubbingPipelineModel(config, codec, audio_encoder, transformer(0))
    item, read = clip(0, 90), 0

    def frames() -> Iterator[np.ndarray]:
        nonlocal read
        for frame in item.frames:
            read += 1
            yield frame

    parts, ahead = [], []
    for part in model.dub_stream(frames(), 90, item.samples, item.seed):
        parts.append(part.frames)
        ahead.append(read - sum(map(len, parts)))
    assert [len(part) for part in parts] == ([25, 20, 20, 20, 5] if stitching == "pixels" else [13, 20, 20, 20, 17])
    assert ahead == ([0, 0, 0, 0, 0] if stitching == "pixels" else [12, 12, 12, 12, 0])
    assert np.array_equal(np.concatenate(parts), model.dub_many([item])[0])


def test_a_first_step_that_does_not_see_the_mouth(codec: BlockCodec, audio_encoder: AudioEncoder) -> None:
    """At share 0 an editor's first step is the generator's; in between it is between; later steps are its own."""
    network, item = transformer(12), clip(3, 25)

    def latents(share: float, steps: int = 1, mode: Literal["editor", "generator"] = "editor") -> torch.Tensor:
        flow = FLOW.model_copy(update={"companion_share": share, "sampling_steps": steps})
        config = DubberConfig(mode=mode, flow=flow, crop_size=SIZE, noise_retries=0)
        model = DubbingPipelineModel(config, codec, audio_encoder, network)
        return model._window([model._strand(item)], 0)

    whole, half, none, generator = latents(1), latents(0.5), latents(0), latents(1, mode="generator")
    assert float((whole - none).abs().max()) > 0.01
    assert torch.allclose(none, generator, atol=1e-5)
    assert torch.allclose(half, (whole + none) / 2, atol=1e-5)
    later = latents(0, 2)
    assert not torch.allclose(later, latents(1, 2, "generator"), atol=1e-3)
    assert not torch.allclose(later, latents(1, 2), atol=1e-3)


def test_a_stream_with_landmarks_is_masked_like_the_whole(codec: BlockCodec, audio_encoder: AudioEncoder) -> None:
    flow = FLOW.model_copy(update={"companion_share": 0.3})
    config = DubberConfig(mode="editor", flow=flow, crop_size=SIZE, noise_retries=1)
    model, item = DubbingPipelineModel(config, codec, audio_encoder, transformer(12)), clip(0, 60)
    parts = [
        part.frames
        for part in model.dub_stream(iter(item.frames), 60, item.samples, item.seed, landmarks=item.landmarks)
    ]
    assert np.array_equal(np.concatenate(parts), model.dub_many([item])[0])
    with pytest.raises(InputError, match="editor of a clip without landmarks"):
        model.dub_crops(item.frames, item.samples, 0)


def test_a_model_without_context_channels_has_one_view(codec: BlockCodec, audio_encoder: AudioEncoder) -> None:
    outs = []
    for share in (0.3, 1.0):
        flow = FLOW.model_copy(update={"companion_share": share})
        config = DubberConfig(mode="editor", flow=flow, crop_size=SIZE, noise_retries=0)
        model = DubbingPipelineModel(config, codec, audio_encoder, transformer(0))
        assert not model.masks
        outs.append(model.dub_crops(clip(0, 30).frames, clip(0, 30).samples, 0))
    assert np.array_equal(*outs)


def test_latents_are_joined_as_if_decoded_as_one(codec: BlockCodec, audio_encoder: AudioEncoder) -> None:
    config = DubberConfig(mode="editor", flow=FLOW, crop_size=SIZE, stitching="latents", noise_retries=0)
    model = DubbingPipelineModel(config, codec, audio_encoder, transformer(0))
    windows, made = [], model._window

    def spy(strands: Sequence[Strand], start: int, retry: int = 0, beat: object = None) -> torch.Tensor:
        windows.append(made(strands, start, retry)[0])
        return windows[-1][None]

    model._window = spy  # type: ignore[method-assign]
    item = clip(0, 65)
    output = model.dub_crops(item.frames, item.samples, 0)
    whole = windows[0]
    for window in windows[1:]:
        whole = torch.cat([whole[:, :-1], (whole[:, -1:] + window[:, 1:2]) / 2, window[:, 2:]], dim=1)
    with torch.no_grad():
        expected = to_frames(codec.decode(whole[None])[0])
    assert expected.shape == output.shape
    assert np.abs(expected.astype(int) - output).max() <= 1


def test_short_sound_is_followed_by_silence(editor: DubbingPipelineModel) -> None:
    item = clip(0, 30)
    padded = np.pad(item.samples[:6400], (0, 30 * 640 - 6400))
    cut = editor.dub_crops(item.frames, item.samples[:6400], 1)
    assert np.array_equal(cut, editor.dub_crops(item.frames, padded, 1))


def test_progress_counts_windows(editor: DubbingPipelineModel) -> None:
    told: list[tuple[int, int]] = []
    editor.dub_many([clip(0, 45), clip(1, 25)], batch_size=1, progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_a_generator_needs_landmarks_and_context(codec: BlockCodec, audio_encoder: AudioEncoder) -> None:
    config = DubberConfig(mode="generator", flow=FLOW, crop_size=SIZE)
    generator = DubbingPipelineModel(config, codec, audio_encoder, transformer(12))
    item = clip(0, 30)
    assert generator.dub_many([item])[0].shape == item.frames.shape
    with pytest.raises(InputError, match="landmarks"):
        generator.dub_crops(item.frames, item.samples, 0)
    with pytest.raises(InputError, match="context channels"):
        DubbingPipelineModel(config, codec, audio_encoder, transformer(0))


@pytest.mark.parametrize("fill", ["grey", "reference"])
def test_a_generator_does_not_see_what_its_mask_hides(
    codec: BlockCodec, audio_encoder: AudioEncoder, fill: str
) -> None:
    """But for its one reference frame, in the middle of the window."""
    net = transformer(12)
    net.register_to_config(context_fill=fill)
    generator = DubbingPipelineModel(
        DubberConfig(mode="generator", flow=FLOW, crop_size=SIZE), codec, audio_encoder, net
    )
    item = clip(0, 25)
    assert item.landmarks is not None
    hidden = ~inpaint_mask(item.landmarks, SIZE)
    assert hidden.any()
    output = generator.dub_many([item])[0]
    frames = np.where(hidden[..., None], 255 - item.frames, item.frames)
    middle = frames[12].copy()
    frames[12] = item.frames[12]
    assert np.array_equal(generator.dub_many([replace(item, frames=frames)])[0], output)
    frames[12] = middle
    assert not np.array_equal(generator.dub_many([replace(item, frames=frames)])[0], output)


def test_the_hole_shows_a_face_from_beside_the_window(codec: BlockCodec, audio_encoder: AudioEncoder) -> None:
    """Windows from 0 and 20 of 45 frames: reference frames 12 and 32, holes filled from frames 25 and 19."""
    net = transformer(12)
    net.register_to_config(context_fill="reference")
    config = DubberConfig(mode="generator", flow=FLOW, crop_size=SIZE, noise_retries=0)
    generator = DubbingPipelineModel(config, codec, audio_encoder, net)
    item = clip(0, 45)
    assert item.landmarks is not None
    hidden = ~inpaint_mask(item.landmarks, SIZE)
    output = generator.dub_many([item])[0]

    def dub_without(numbers: set[int]) -> np.ndarray:
        frames = item.frames.copy()
        for n in numbers:
            frames[n] = np.where(hidden[n][..., None], 255 - frames[n], frames[n])
        whole = generator.dub_many([replace(item, frames=frames)])[0]
        parts = list(generator.dub_stream(iter(frames), 45, item.samples, item.seed, landmarks=item.landmarks))
        assert np.array_equal(np.concatenate([part.frames for part in parts]), whole), "frames as they come do too"
        return whole

    seen = {12, 19, 25, 32}
    assert np.array_equal(dub_without(set(range(45)) - seen), output)
    for number in seen:
        assert not np.array_equal(dub_without({number}), output), number


def test_a_reference_from_elsewhere_is_the_frame_farthest_away(codec: BlockCodec, audio_encoder: AudioEncoder) -> None:
    """The first window of 45 frames takes it from the end, the second from the beginning."""
    net = transformer(12)
    net.register_to_config(context_fill="reference")
    config = DubberConfig(mode="generator", flow=FLOW, crop_size=SIZE, reference="elsewhere", noise_retries=0)
    generator = DubbingPipelineModel(config, codec, audio_encoder, net)
    item = clip(0, 45)
    assert item.landmarks is not None
    hidden = ~inpaint_mask(item.landmarks, SIZE)
    output = generator.dub_many([item])[0]

    def dub_without(*numbers: int) -> np.ndarray:
        frames = item.frames.copy()
        for n in numbers:
            frames[n] = np.where(hidden[n][..., None], 255 - frames[n], frames[n])
        return generator.dub_many([replace(item, frames=frames)])[0]

    assert np.array_equal(dub_without(*range(1, 44)), output)
    assert np.array_equal(dub_without(0)[:25], output[:25])
    assert not np.array_equal(dub_without(0)[25:], output[25:])
    assert not np.array_equal(dub_without(44)[:25], output[:25])


def test_other_sizes_are_refused(editor: DubbingPipelineModel) -> None:
    with pytest.raises(InputError, match=f"{SIZE}"):
        editor.dub_crops(np.zeros((5, 16, 16, 3), np.uint8), np.zeros(3200, np.float32), 0)


def test_each_expert_acts_in_its_window_only(codec: BlockCodec, audio_encoder: AudioEncoder) -> None:
    flow = FlowConfig(sampling_steps=8, sampling_shift=1.0, audio_guidance=1.0)
    config = DubberConfig(mode="editor", flow=flow, crop_size=SIZE, experts=("lip", "texture"), noise_retries=0)
    model = DubbingPipelineModel(config, codec, audio_encoder, transformer(0, ("lip", "texture")))
    acting: list[tuple[float, tuple[str, ...]]] = []
    forward = model.transformer.forward

    def spy(latents: torch.Tensor, timestep: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        layer = model.transformer.blocks[0].self_attn.q
        acting.append((float(timestep.max()), () if layer.disable_adapters else tuple(layer.active_adapters)))
        return forward(latents, timestep, *rest)

    model.transformer.forward = spy
    item = clip(0, 25)
    model.dub_crops(item.frames, item.samples, 0)
    times = [t / 8 for t in range(8, 0, -1)]
    assert acting == [(t, ("lip",) if 0.4 <= t <= 0.8 else ("texture",) if t <= 0.3 else ()) for t in times]
    acting.clear()
    both = model.with_flow(flow.model_copy(update={"lip_window": (0.0, 1.0)}))
    both.dub_crops(item.frames, item.samples, 0)
    assert acting == [(t, ("lip", "texture") if t <= 0.3 else ("lip",)) for t in times]


def test_a_transformer_is_the_same_bytes_wherever_it_was_read_from(tmp_path: Path) -> None:
    save_transformer(transformer(0), tmp_path / "first")
    save_transformer(load_transformer(tmp_path / "first"), tmp_path / "second")
    files = {folder: sorted((tmp_path / folder).iterdir()) for folder in ("first", "second")}
    assert [path.read_bytes() for path in files["first"]] == [path.read_bytes() for path in files["second"]]
    assert str(tmp_path) not in (tmp_path / "second" / "config.json").read_text(encoding="utf-8")


def test_a_loaded_transformer_does_not_change_with_its_file(tmp_path: Path) -> None:
    """A model that serves must not see what happens to its file; a memory-mapped one would."""
    save_transformer(transformer(0), tmp_path)
    [path] = tmp_path.glob("*.safetensors")
    loaded = load_transformer(tmp_path)
    before = {name: value.clone() for name, value in loaded.state_dict().items()}
    with path.open("r+b") as file:
        file.seek(-4096, os.SEEK_END)
        file.write(bytes(4096))
    assert all(torch.equal(value, before[name]) for name, value in loaded.state_dict().items())
    changed = load_transformer(tmp_path).state_dict()
    assert any(not torch.equal(value, before[name]) for name, value in changed.items())


def test_an_expert_is_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    """PEFT keeps the adapted layers' names in a set, whose order differs from process to process."""
    model = transformer(0)
    names = ["q", "k", "v", "o", "ffn.0", "ffn.2"]
    model.add_adapter(LoraConfig(r=2, target_modules=names), adapter_name="lip")
    save_expert(model, "lip", tmp_path)
    with safe_open(tmp_path / LORA_FILE, "pt") as file:
        metadata = json.loads(file.metadata()["lora_adapter_metadata"])
    assert metadata["target_modules"] == sorted(names)
    again = transformer(0)
    add_expert(again, "lip", tmp_path)
    for turn in range(8):  # the header's own order is drawn anew at every write
        save_expert(again, "lip", tmp_path / str(turn))
        assert (tmp_path / str(turn) / LORA_FILE).read_bytes() == (tmp_path / LORA_FILE).read_bytes()


def test_a_folder_gives_back_the_same_dub(tmp_path: Path, codec: BlockCodec, audio_encoder: AudioEncoder) -> None:
    config = DubberConfig(mode="editor", flow=FLOW, crop_size=SIZE, experts=("lip", "texture"))
    model = DubbingPipelineModel(config, codec, audio_encoder, transformer(0, ("lip", "texture")))
    model.save_pretrained(tmp_path / "dubber")
    loaded = DubbingPipelineModel.from_pretrained(tmp_path / "dubber")
    item = clip(0, 30)
    first, second = (each.dub_crops(item.frames, item.samples, 0) for each in (model, loaded))
    assert np.abs(first.astype(int) - second).max() <= 1
    assert not list((tmp_path / "dubber").rglob("*.bin"))
    assert loaded.config == config
    values = json.loads((tmp_path / "dubber" / "config.json").read_text())
    for name in ("noise_scale", "temperature"):  # as an earlier version wrote it, which took all of the noise
        del values["flow"][name]
    (tmp_path / "dubber" / "config.json").write_text(json.dumps(values))
    earlier = DubbingPipelineModel.from_pretrained(tmp_path / "dubber").config.flow
    assert (earlier.noise_scale, earlier.temperature) == (1.0, 1.0)
    (tmp_path / "dubber" / "config.json").unlink()
    with pytest.raises(InputError, match="no dubbing model"):
        DubbingPipelineModel.from_pretrained(tmp_path / "dubber")


def test_what_windows_and_steps_share_changes_nothing_but_time(codec: BlockCodec, audio_encoder: AudioEncoder) -> None:
    """Over two windows, with experts that come and go."""
    net = transformer(0, ("lip", "texture"))
    item = clip(0, 45)

    def dub(**changes: object) -> np.ndarray:
        flow = FLOW.model_copy(update={"sampling_steps": 8, "sampling_shift": 1.0, "audio_guidance": 1.5, **changes})
        config = DubberConfig(mode="editor", flow=flow, crop_size=SIZE, experts=("lip", "texture"), noise_retries=0)
        return DubbingPipelineModel(config, codec, audio_encoder, net).dub_crops(item.frames, item.samples, 0)

    plain = dub().astype(int)
    assert np.abs(dub(remember=True) - plain).max() <= 1
    assert np.abs(dub(step_reuse=1e-9) - plain).max() <= 1
    late, reused = dub(start_from=0.7), dub(step_reuse=10.0)
    assert np.abs(late - plain).max() > 1
    assert np.abs(reused - plain).max() > 1
