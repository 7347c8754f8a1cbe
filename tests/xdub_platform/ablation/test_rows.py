"""The rows and orderings as data: whole, sensible under the settings, and with the paper's numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from model_code.diffusion.schedule import expert_windows, experts_by_step, sigmas
from model_code.errors import InputError
from xdub_platform.ablation.orderings import ORDERINGS
from xdub_platform.ablation.rows import ROWS, TABLES, inpainting, long_segments, single_phase
from xdub_platform.ablation.run import Wanted, chosen_tables, read_explanations, seed_settings
from xdub_platform.ablation.stages import changed
from xdub_platform.settings import Settings, load_settings

BY_NAME = {row.name: row for row in ROWS}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(state_root=tmp_path)


def test_every_ordering_has_its_rows_in_its_table() -> None:
    assert len(BY_NAME) == len(ROWS)
    assert {table for row in ROWS for table in row.tables} == set(TABLES)
    assert sum(ordering.counted for ordering in ORDERINGS) == 7
    for ordering in ORDERINGS:
        rows = {row.name for row in Wanted((ordering.table,), (0,)).rows}
        assert {name for claim in ordering.claims for name in (claim.better, claim.worse)} <= rows, ordering.name


@pytest.mark.parametrize(
    ("row", "table", "measure", "printed"),
    [
        ("full", "5", "sync_c", "8.56"),
        ("channel_concat", "5", "identity", ".873"),
        ("uniform", "5", "perceptual_frechet", "18.52"),
        ("uniform", "10", "sync_c", "7.68"),
        ("generator_long", "6", "identity", ".842"),
        ("lip_shift_3", "7", "perceptual_frechet", "10.52"),
        ("texture_always", "8", "sync_c", "6.74"),
        ("inpainting", "10", "perceptual_distance", ".018"),
        ("constructed", "4", "sync_c", "7.88"),
        ("full", "4", "identity", ".912"),
    ],
)
def test_the_papers_numbers(row: str, table: str, measure: str, printed: str) -> None:
    assert BY_NAME[row].tables[table][measure] == printed


def test_every_row_is_settings_that_hold_and_says_what_it_changes(settings: Settings) -> None:
    assert changed(settings, {}) == settings
    for row in ROWS:
        assert (changed(settings, row.changes(settings)) == settings) == (not row.changes(settings)), row.name


def test_budgets_are_the_same_for_one_phase_and_for_several(settings: Settings) -> None:
    phases = settings.phases
    one = changed(settings, single_phase(settings)).phases.editor
    assert one.steps == phases.editor.steps + phases.lip.steps + phases.texture.steps
    assert (one.uniform_times, one.shift) == (True, 1.0)
    rival = changed(settings, inpainting(settings)).phases
    assert rival.generator.steps == phases.generator.steps + phases.editor.steps
    assert (rival.generator.shift, rival.generator.own_estimates) == (5.0, phases.editor.own_estimates)
    assert rival.lip == phases.lip.model_copy(update={"inpaints": True})
    assert not rival.editor.inpaints


def test_long_segments_fit_the_corpus(settings: Settings) -> None:
    assert long_segments(settings) == {"clip_frames": 73, "short_frames": 37}
    short = changed(settings, {"corpus": {"seconds": (2.0, 2.5)}})
    assert long_segments(short) == {"clip_frames": 49, "short_frames": 25}


def test_every_window_of_table_8_holds_other_steps(settings: Settings) -> None:
    held = set()
    rows = Wanted(("8",), (0,)).rows
    for row in rows:
        flow = settings.flow.model_copy(update=dict(row.sampling))
        windows = expert_windows(flow)
        held.add(tuple(experts_by_step(sigmas(flow.sampling_steps, flow.sampling_shift), windows)))
    assert len(held) == len(rows) == 6


def test_tables_are_chosen_by_name() -> None:
    assert chosen_tables("pairs, 5") == ("5", "pairs")
    with pytest.raises(InputError, match="no table 9 among"):
        chosen_tables("5,9")


def test_each_seed_has_its_state_root_and_the_scaled_steps(settings: Settings) -> None:
    whole, half = seed_settings(settings, 1, 1.0), seed_settings(settings, 1, 0.5)
    assert (whole.seed, whole.state_root.name, half.state_root.name) == (1, "seed-1", "seed-1-x0.5")
    assert whole.phases == settings.phases
    assert half.phases.editor.steps == settings.phases.editor.steps // 2
    assert half.syncnet == settings.syncnet


def test_the_command_names_what_the_environment_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Wanted(("5", "8"), (0, 1)).command("embedded") == "xdub ablate --profile embedded --tables 5,8 --seeds 2"
    monkeypatch.setenv("XDUB_PHASES__LIP__STEPS", "60")
    monkeypatch.setenv("XDUB_DATABASE__URL", "postgresql://user:secret@host/db")
    told = Wanted(("5",), (0,), 0.5).command("embedded")
    assert told == "XDUB_PHASES__LIP__STEPS=60 xdub ablate --profile embedded --tables 5 --seeds 1 --steps-scale 0.5"


def test_explanations_are_read_by_ordering(tmp_path: Path) -> None:
    path = tmp_path / "ablations.toml"
    assert read_explanations(path) == {}
    path.write_text('lip_expert = "twelve steps"\n', encoding="utf-8")
    assert read_explanations(path) == {"lip_expert": "twelve steps"}
    path.write_text('lips = "twelve steps"\n', encoding="utf-8")
    with pytest.raises(InputError, match="explains lips"):
        read_explanations(path)
