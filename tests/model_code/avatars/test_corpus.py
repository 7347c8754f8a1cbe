from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from model_code.avatars import seeds
from model_code.avatars.clipspec import (
    SAMPLES_PER_FRAME,
    ClipSpec,
    avatar_for,
    draw_spec,
    fit_utterance,
    fresh_specs,
    other_speech,
    render_spec,
    speech_of,
    spread,
)
from model_code.avatars.corpus import corpus_specs, read_specs, write_corpus
from model_code.avatars.sheet import head_sheet, strip
from model_code.config import CorpusConfig
from model_code.media.video import read_video
from model_code.speech.sentences import sentences

SMALL = CorpusConfig(training_heads=1, heldout_heads=1, clips_per_head=2, seconds=(1.0, 1.2), frame_size=64)


@pytest.fixture(scope="module")
def spec() -> ClipSpec:
    return draw_spec(
        seeds.head_seed("FRESH", 5), 0, kind="natural", condition="plain", language="en", seconds=(1.0, 1.2)
    )


def test_the_ranges_of_heads_are_disjoint() -> None:
    bases = sorted(seeds.BASES.values())
    assert np.diff(bases).min() >= seeds.RANGE
    with pytest.raises(ValueError, match="outside"):
        seeds.head_seed("CORPUS", seeds.RANGE)


def test_the_corpus_is_mixed_and_its_held_out_heads_are_its_own() -> None:
    specs = corpus_specs(CorpusConfig())
    train = [spec for spec in specs if spec.split == "train"]
    held = [spec for spec in specs if spec.split == "heldout"]
    assert len({spec.head_seed for spec in train}) == 32
    assert len({spec.head_seed for spec in held}) == 8
    assert not {spec.head_seed for spec in train} & {spec.head_seed for spec in held}
    assert not {spec.text for spec in train} & {spec.text for spec in held}
    assert not {spec.voice for spec in train} & {spec.voice for spec in held}
    assert {spec.language for spec in train} == set(CorpusConfig().languages)
    assert {spec.kind for spec in held} == {"natural", "stylised", "nonhuman"}
    assert len({spec.name for spec in specs}) == len(specs)
    kinds = Counter(spec.kind for spec in train)
    conditions = Counter(spec.condition for spec in specs)
    assert 0.6 <= kinds["natural"] / len(train) <= 0.7
    assert 0.55 <= conditions["plain"] / len(specs) <= 0.65
    assert set(conditions) == {"plain", "occluded", "changing_light", "profile"}
    voices: dict[str, set[int]] = {}
    for spec in specs:
        voices.setdefault(spec.speaker_id, set()).add(spec.voice)
        assert 75 <= spec.n_frames <= 100
    assert all(len(spoken) == 1 for spoken in voices.values())
    assert specs == corpus_specs(CorpusConfig())
    assert specs != corpus_specs(CorpusConfig(seed=8))


def test_spread_keeps_proportions() -> None:
    keys = spread({"a": 0.5, "b": 0.3, "c": 0.2}, 10, 0)
    assert Counter(keys) == {"a": 5, "b": 3, "c": 2}
    assert keys == spread({"a": 0.5, "b": 0.3, "c": 0.2}, 10, 0)


def test_the_exact_reference_of_the_same_speech_is_the_clip(spec: ClipSpec) -> None:
    clip, utterance = render_spec(spec, 64)
    same, _ = render_spec(spec, 64, speech=speech_of(spec))
    assert same.frames.tobytes() == clip.frames.tobytes()
    assert clip.frames.shape == (spec.n_frames, 64, 64, 3)
    assert utterance.samples.shape == (spec.n_frames * SAMPLES_PER_FRAME,)


def test_the_exact_reference_of_other_speech_moves_the_mouth_alone(spec: ClipSpec) -> None:
    clip, _ = render_spec(spec, 96)
    other, utterance = render_spec(spec, 96, speech=other_speech(spec, 1))
    assert utterance.text != spec.text
    assert other.mouth.shape == clip.mouth.shape
    assert np.abs(other.mouth - clip.mouth).max() > 0.05
    above = int(clip.landmarks[:, 17:27, 1].min())  # the brows
    assert np.array_equal(other.frames[:, :above], clip.frames[:, :above])
    np.testing.assert_allclose(other.landmarks[:, 36:48], clip.landmarks[:, 36:48], atol=0.1)  # cheeks push lids


def test_other_speech_shares_no_sentence_with_the_clip() -> None:
    for spec in (*fresh_specs(77, 8), *fresh_specs(5, 8)):
        said = [sentence for sentence in sentences(spec.language, "heldout") if sentence in spec.text]
        assert said
        other = other_speech(spec, "test").text
        assert other
        assert not [sentence for sentence in said if sentence in other], (spec.text, other)


def test_other_speech_of_one_who_has_said_everything(spec: ClipSpec) -> None:
    everything = spec.model_copy(update={"text": " ".join(sentences(spec.language, spec.split))})
    assert other_speech(everything, 1).text in everything.text


def test_shorter_speech_is_followed_by_rest(spec: ClipSpec) -> None:
    short = fit_utterance(speech_of(spec), 5)
    fitted = fit_utterance(short, 30)
    assert not fitted.samples[5 * SAMPLES_PER_FRAME :].any()
    assert len(fitted.samples) == 30 * SAMPLES_PER_FRAME


def test_specs_survive_json(spec: ClipSpec) -> None:
    assert ClipSpec.model_validate_json(spec.model_dump_json()) == spec


def test_fresh_heads_are_fresh_and_repeat() -> None:
    first = fresh_specs(11, 8)
    assert first == fresh_specs(11, 8)
    heads = {spec.head_seed for spec in first}
    assert len(heads) == 8
    assert not heads & {spec.head_seed for spec in fresh_specs(12, 8)}
    assert all(seeds.FRESH <= head < seeds.FRESH + seeds.RANGE for head in heads)
    assert all(spec.n_frames == 75 for spec in first)


def test_a_corpus_on_disk_is_what_a_user_would_drop(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    specs = write_corpus(tmp_path / "one" / "incoming", SMALL, processes=1, progress=lambda *n: seen.append(n))
    assert seen == [(i, 4) for i in range(1, 5)]
    write_corpus(tmp_path / "two" / "incoming", SMALL, processes=2)
    names = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.*"))
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
    for spec in specs:
        card = json.loads((tmp_path / "one/incoming" / f"{spec.name}.json").read_text())
        assert set(card) - {"split"} == {"speaker_id", "language", "licence", "consent", "kind", "condition"}
        assert ("split" in card) == (spec.split == "heldout")
        video = read_video(tmp_path / "one/incoming" / f"{spec.name}.mp4")
        assert video.frames.shape == (spec.n_frames, 64, 64, 3)
        truth = render_spec(spec, 64)[0].frames
        assert np.abs(video.frames.astype(int) - truth).mean() < 4
    assert read_specs(tmp_path / "one" / "truth") == {spec.name: spec for spec in specs}


def test_a_written_clip_is_left_alone(tmp_path: Path) -> None:
    write_corpus(tmp_path / "incoming", SMALL, processes=1)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "incoming").iterdir()}
    write_corpus(tmp_path / "incoming", SMALL, processes=1)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "incoming").iterdir()}


def test_sheets_show_every_head(spec: ClipSpec) -> None:
    sheet = head_sheet(SMALL, columns=2, size=48)
    assert sheet.shape == (48, 96, 3)
    assert strip(spec, 48, frames=4).shape == (48, 192, 3)


def test_avatars_of_all_kinds_have_the_renderers_parts(spec: ClipSpec) -> None:
    for kind in ("natural", "stylised", "nonhuman"):
        avatar = avatar_for(seeds.head_seed("FRESH", 77), kind)  # type: ignore[arg-type]
        assert avatar.landmarks.shape == (68,)
        assert avatar.morphs.shape == (52, *avatar.vertices.shape)
