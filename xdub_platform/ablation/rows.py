"""The rows of the ablations as data: what each changes in the full recipe, and what the paper printed.

A row is a set of settings. What it has to train follows from them (`stages`): a phase whose settings and inputs are
those of another row is made once for both. The paper's numbers are from HDTF; Table 4's from 20 pairs of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from model_code.training.data import TEMPORAL_FACTOR
from xdub_platform.settings import Settings

Changes = Callable[[Settings], dict[str, Any]]
Paper = dict[str, str]
LONG_FRAMES = 73
"""77 frames there, and clips of three seconds here: 2.9 times the 25 of a short segment."""

TABLES = {
    "4": "Editor against its own constructed training data",
    "5": "What the editor needs",
    "6": "Length of the generator's segments",
    "7": "Timestep shift of the phases",
    "8": "Windows of the experts",
    "10": "Paradigm and training strategy",
    "pairs": "What each kind of pair is worth (not in the paper)",
}


def paper(fid: str = "", lpips: str = "", sync_c: str = "", csim: str = "") -> Paper:
    """Printed numbers, under the names of what stands for them here."""
    names = {"perceptual_frechet": fid, "perceptual_distance": lpips, "sync_c": sync_c, "identity": csim}
    return {name: value for name, value in names.items() if value}


def as_it_is(settings: Settings) -> dict[str, Any]:
    """Changes nothing."""
    return {}


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        name: Its name in orderings and files.
        title: In words.
        tables: Where it stands, with the paper's numbers there.
        changes: Settings that differ, nested as they are; what is trained follows from them.
        model: Which model dubs.
        experts: The LoRA experts that it has.
        sampling: Flow settings that differ in dubbing alone; nothing is trained for them.
        long: Dubs in long windows.
        reference: Where a generator's reference frames come from.
        composited: Dubs as pairs are made: their sampling, and only the face taken.
        changing_light: Cases under a moving light.
    """

    name: str
    title: str
    tables: Mapping[str, Paper]
    changes: Changes = as_it_is
    model: Literal["editor", "generator"] = "editor"
    experts: tuple[str, ...] = ("lip", "texture")
    sampling: Mapping[str, Any] = field(default_factory=dict)
    long: bool = False
    reference: Literal["inside", "elsewhere"] = "inside"
    composited: bool = False
    changing_light: bool = False


def long_frames(settings: Settings) -> int:
    """Frames of a long segment: as many as every clip of the corpus has, at most `LONG_FRAMES`; 4n + 1."""
    shortest = int(settings.corpus.seconds[0] * settings.media.fps)
    return TEMPORAL_FACTOR * ((min(LONG_FRAMES, shortest) - 1) // TEMPORAL_FACTOR) + 1


def long_segments(settings: Settings) -> dict[str, int]:
    """Lengths of a phase with long segments: half of them where it trains on parts of the crop."""
    long = long_frames(settings)
    return {"clip_frames": long, "short_frames": TEMPORAL_FACTOR * (long // (2 * TEMPORAL_FACTOR)) + 1}


def phase(name: str, **numbers: Any) -> Changes:
    """One phase's numbers."""
    return lambda settings: {"phases": {name: numbers}}


def variants(*names: str) -> Changes:
    """The kinds of pairs that are learned from."""
    return lambda settings: {"variants": names}


def single_phase(settings: Settings) -> dict[str, Any]:
    """The editor at uniform times, for the steps of all three phases."""
    phases = settings.phases
    steps = phases.editor.steps + phases.lip.steps + phases.texture.steps
    return {"phases": {"editor": {"steps": steps, "uniform_times": True, "shift": 1.0}}}


SHARED = {
    "learning_rate",
    "batch_size",
    "cells",
    "whole_from",
    "own_estimates",
    "accumulate",
    "gradient_checkpointing",
    "precision",
}
"""What generator* has of the editor's phase."""


def inpainting(settings: Settings) -> dict[str, Any]:
    """generator*: the editor's set-up for the generator's task; the steps of both, long segments; experts inpaint."""
    phases = settings.phases
    editor = phases.editor.model_dump(include=SHARED)
    times = {"uniform_times": phases.editor.uniform_times, "shift": phases.editor.shift}
    steps = {"steps": phases.generator.steps + phases.editor.steps}
    return {
        "phases": {
            "generator": {**editor, **times, **steps, **long_segments(settings)},
            "lip": {"inpaints": True},
            "texture": {"inpaints": True},
        }
    }


def inpainting_single_phase(settings: Settings) -> dict[str, Any]:
    """generator* at uniform times, for the steps of all of its phases."""
    phases = settings.phases
    numbers = inpainting(settings)["phases"]["generator"]
    steps = numbers["steps"] + phases.lip.steps + phases.texture.steps
    return {"phases": {"generator": {**numbers, "steps": steps, "uniform_times": True, "shift": 1.0}}}


FULL = paper("7.03", ".014", "8.56", ".883")
MORE_STEPS = {"sampling_steps": 10}
"""With the 5 steps of the embedded profile some windows hold the same steps; Table 8 takes twice as many."""


def window(name: str, title: str, numbers: Paper, **windows: tuple[float, float]) -> Row:
    """A row of Table 8."""
    return Row(name, title, {"8": numbers}, sampling={**MORE_STEPS, **windows})


ROWS = (
    Row("full", "full recipe", {"4": paper("6.98", "", "8.97", ".912"), "5": FULL, "7": FULL, "10": FULL}),
    Row("constructed", "constructed data (the generator's)", {"4": paper("7.00", "", "7.88", ".905")},
        model="generator", experts=(), composited=True),
    Row("channel_concat", "companion in channels alone", {"5": paper("6.89", ".014", "7.49", ".873")},
        phase("editor", companion="channels")),
    Row("token_concat", "companion as tokens alone", {"5": {}}, phase("editor", companion="tokens")),
    Row("uniform", "one phase at uniform t",
        {"5": paper("18.52", ".125", "3.85", ".592"), "10": paper("18.52", ".125", "7.68")},
        single_phase, experts=()),
    Row("no_lip", "without lip expert", {"5": paper("7.00", ".013", "7.68", ".875")}, experts=("texture",)),
    Row("no_texture", "without texture expert; lip shift 1.5",
        {"5": paper("8.26", ".018", "8.56", ".847"), "7": paper("8.26", ".018", "8.56")}, experts=("lip",)),
    Row("generator_short", "generator, 25 frames + 5", {"6": paper("", "", "7.841", ".867")},
        model="generator", experts=()),
    Row("generator_long", "generator, long clips", {"6": paper("", "", "7.983", ".842")},
        lambda settings: {"phases": {"generator": long_segments(settings)}},
        model="generator", experts=(), long=True),
    Row("editor", "editor alone, shift 5; all pairs", {"7": paper("8.25", ".017", "7.68"), "pairs": {}}, experts=()),
    Row("editor_shift_4", "editor alone, shift 4", {"7": paper("8.24", ".018", "7.64")},
        phase("editor", shift=4.0), experts=()),
    Row("editor_shift_3", "editor alone, shift 3", {"7": paper("8.31", ".020", "7.65")},
        phase("editor", shift=3.0), experts=()),
    Row("lip_shift_3", "lip shift 3", {"7": paper("10.52", ".021", "8.47")}, phase("lip", shift=3.0),
        experts=("lip",)),
    Row("lip_shift_2", "lip shift 2", {"7": paper("8.39", ".017", "8.50")}, phase("lip", shift=2.0),
        experts=("lip",)),
    Row("lip_shift_08", "lip shift 0.8", {"7": paper("8.31", ".018", "7.21")}, phase("lip", shift=0.8),
        experts=("lip",)),
    Row("texture_shift_08", "full, texture shift 0.8", {"7": paper("7.25", ".015", "7.98")},
        phase("texture", shift=0.8)),
    Row("texture_shift_04", "full, texture shift 0.4", {"7": paper("7.00", ".015", "8.43")},
        phase("texture", shift=0.4)),
    window("windows", "lip [0.4, 0.8], texture [0, 0.3]", paper("7.03", ".014", "8.56")),
    window("lip_always", "lip [0, 1]", paper("9.24", ".028", "7.92"), lip_window=(0.0, 1.0)),
    window("lip_early", "lip [0.6, 1]", paper("8.52", ".020", "8.61"), lip_window=(0.6, 1.0)),
    window("lip_late", "lip [0.2, 0.6]", paper("7.26", ".016", "8.03"), lip_window=(0.2, 0.6)),
    window("texture_always", "texture [0, 1]", paper("6.95", ".015", "6.74"), texture_window=(0.0, 1.0)),
    window("texture_later", "texture [0.1, 0.4]", paper("7.54", ".016", "7.99"), texture_window=(0.1, 0.4)),
    Row("inpainting_uniform", "generator*, one phase at uniform t", {"10": paper("7.87", ".018", "8.05", ".855")},
        inpainting_single_phase, model="generator", experts=(), long=True, reference="elsewhere"),
    Row("inpainting", "generator*, multi-phase", {"10": paper("7.92", ".018", "8.19")}, inpainting,
        model="generator", long=True, reference="elsewhere"),
    Row("pairs_generated", "editor alone, generated pairs", {"pairs": {}}, variants("generated"), experts=()),
    Row("pairs_relit", "editor alone, generated and relit", {"pairs": {}}, variants("generated", "relit"),
        experts=()),
    Row("pairs_rendered", "editor alone, rendered pairs", {"pairs": {}}, variants("rendered"), experts=()),
    Row("light_generated", "under changing light: generated pairs", {"pairs": {}}, variants("generated"),
        experts=(), changing_light=True),
    Row("light_relit", "under changing light: generated and relit", {"pairs": {}},
        variants("generated", "relit"), experts=(), changing_light=True),
    Row("light_all", "under changing light: all pairs", {"pairs": {}}, experts=(), changing_light=True),
)  # fmt: skip
