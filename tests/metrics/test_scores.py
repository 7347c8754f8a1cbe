"""The score table on records with known answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from model_code.metrics.scores import (
    BARS,
    COPY,
    EXACT,
    CaseRecord,
    RowCase,
    frechet_measure,
    load_records,
    save_records,
    summarise,
    verdicts,
)

FRAMES = 80


def _row(curves: np.ndarray, lips: float, identity: float, opening: float) -> RowCase:
    return RowCase(
        curves=curves.tolist(),
        silent_opening=[opening] * 10,
        lip_psnr=lips,
        face_psnr=lips,
        outside_psnr=35.0,
        psnr=lips,
        ssim=0.9,
        identity=identity,
    )


def _records(count: int = 12, seed: int = 0) -> list[CaseRecord]:
    """The editor follows the sound; the generator half follows it and half copies the input."""
    rng = np.random.default_rng(seed)
    records = []
    for i in range(count):
        source, reference, noise = rng.standard_normal((3, FRAMES, 3))
        reference[:, 0] = np.linspace(0, 1, FRAMES)[rng.permutation(FRAMES)]
        kind = ("natural", "stylised", "nonhuman")[i % 3]
        records.append(
            CaseRecord(
                case_id=f"case{i}",
                head=i,
                kind=kind,
                condition="occluded" if i % 4 == 0 else kind,
                language="en",
                sentence=f"Hello {seed} {i}.",
                input_curves=source.tolist(),
                reference_curves=reference.tolist(),
                rows={
                    COPY: _row(source, 22, 1.0, 0.5),
                    "generator": _row(reference + source + 0.3 * noise, 24, 0.8, 0.2),
                    "editor": _row(reference + 0.3 * noise, 27, 0.9, 0.05),
                    EXACT: _row(reference, 100, 0.9, 0.0),
                },
            )
        )
    return records


def test_rows_have_their_known_values() -> None:
    scores = summarise(_records(), final="editor")
    rows = scores["rows"]
    assert rows[EXACT]["width"]["value"] == pytest.approx(1.0)
    assert rows[COPY]["leak_width"]["value"] == pytest.approx(1.0)
    assert rows["editor"]["lip_gain"] == {"value": 5.0, "low": 5.0, "high": 5.0}
    assert rows["editor"]["identity_ratio"]["value"] == pytest.approx(1.0)
    assert rows["editor"]["silence"]["value"] == pytest.approx(0.05)
    assert abs(rows["editor"]["leak_width"]["value"]) < 0.1
    assert rows["generator"]["leak_width"]["value"] > 0.9
    assert abs(rows["editor"]["width_wrong_audio"]["value"]) < 0.1


def test_conditions_hold_their_own_cases() -> None:
    scores = summarise(_records(), final="editor")
    assert {label: row["cases"] for label, row in scores["conditions"].items()} == {
        "natural": 4,
        "nonhuman": 4,
        "occluded": 3,
        "stylised": 4,
    }


def test_few_heads_have_values_without_intervals() -> None:
    """Heads count, not cases: those of one head alone are drawn again as they are."""
    again = [record.model_copy(update={"case_id": f"{record.case_id}_1"}) for record in _records(8)]
    scores = summarise([*_records(8), *again], final="editor")
    assert {label: (row["cases"], row["heads"]) for label, row in scores["conditions"].items()} == {
        "natural": (6, 3),
        "nonhuman": (4, 2),
        "occluded": (4, 2),
        "stylised": (6, 3),
    }
    assert scores["conditions"]["natural"]["lip_gain"] == {"value": 5.0, "low": None, "high": None}
    assert scores["rows"]["editor"]["lip_gain"] == {"value": 5.0, "low": 5.0, "high": 5.0}
    few = summarise(_records(4), final="editor")
    assert few["rows"]["editor"]["opening"]["low"] is None
    assert few["differences"]["editor - generator"]["opening"]["high"] is None


def test_a_difference_has_a_narrower_interval_than_its_parts_would_give() -> None:
    """Cases are drawn for both rows together: what makes a case hard for both says nothing of their difference."""
    records = _records()
    for number, record in enumerate(records):
        for row in ("generator", "editor"):
            record.rows[row] = record.rows[row].model_copy(update={"lip_psnr": record.rows[row].lip_psnr + number})
    scores = summarise(records, final="editor")
    for row in ("generator", "editor"):
        assert scores["rows"][row]["lip_gain"]["high"] - scores["rows"][row]["lip_gain"]["low"] > 2
    difference = scores["differences"]["editor - generator"]
    assert difference["lip_gain"] == pytest.approx({"value": 3.0, "low": 3.0, "high": 3.0})
    assert difference["leak_width"]["high"] < 0
    assert difference["width"]["low"] > 0
    assert "lip - editor" not in scores["differences"]


def test_scores_repeat_and_survive_the_disk_and_pooling(tmp_path: Path) -> None:
    first, second = _records(6, 1), _records(6, 2)
    save_records(tmp_path / "a.jsonl", first)
    save_records(tmp_path / "b.jsonl", second)
    pooled = load_records(tmp_path / "a.jsonl", tmp_path / "b.jsonl")
    assert summarise(pooled, final="editor") == summarise([*first, *second], final="editor")


def test_the_same_heads_again_narrow_no_interval() -> None:
    """Two seeds' models dub the same clips; to the bootstrap that is not twice as much evidence."""
    once = _records(6)
    again = [record.model_copy(update={"case_id": f"{record.case_id}_1"}) for record in once]
    first, second = summarise(once, final="editor"), summarise([*once, *again], final="editor")
    for name in ("opening", "lip_gain", "leak_width", "width_wrong_audio"):
        assert first["rows"]["editor"][name] == pytest.approx(second["rows"]["editor"][name])


def test_wrong_audio_is_that_of_other_heads() -> None:
    """Two cases of a head that open the mouth alike do not make another head's dubs sound like its references."""
    records = _records(6)
    again = [
        record.model_copy(update={"case_id": f"{record.case_id}_1", "sentence": f"{record.sentence} Again."})
        for record in records
    ]
    scores = summarise([*records, *again], final="editor")["rows"][EXACT]["width_wrong_audio"]
    assert abs(scores["value"]) < 0.1
    assert scores["low"] < scores["value"] < scores["high"]


def test_one_case_alone_has_no_wrong_audio_control() -> None:
    scores = summarise(_records(1), final="editor")
    assert "width_wrong_audio" not in scores["rows"]["editor"]


def test_verdicts_follow_the_bars() -> None:
    met = verdicts(summarise(_records(), final="editor"), "bench")
    assert met["lip_gain"]
    assert met["silence"]
    assert met["width"]
    assert not verdicts(summarise(_records(), final=COPY), "bench")["leak_opening"]
    zero = next(bar for bar in BARS if bar.sense == "zero")
    assert zero.met(-0.05, 0.1)
    assert not zero.met(-0.2, 0.1)
    assert zero.met(0.0, None) is None


def test_frechet_measure_is_that_of_all_features_together() -> None:
    a = list(np.random.default_rng(3).standard_normal((5, 40, 3)))
    b = [features + 2 for features in a]
    measure = frechet_measure(b, a)
    assert measure.estimate(np.random.default_rng(0), draws=5).value == pytest.approx(12.0)
