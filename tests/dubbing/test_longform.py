"""Index arithmetic of long dubs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from model_code.dubbing.longform import Stitcher, output_frames, pingpong, runs, windows

TEN_MINUTES = 15_000


@given(st.integers(1, 15_000), st.integers(2, 80), st.data())
def test_windows_cover_every_frame_once_beside_the_overlap(n: int, window: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, window - 1))
    spans = windows(n, window, overlap)
    assert spans[0][0] == 0
    assert spans[-1][1] == n
    assert all(0 < end - start <= window for start, end in spans)
    assert all(end - start == window for start, end in spans[:-1])
    for (_, end), (start, _) in itertools.pairwise(spans):
        assert start == end - overlap
    fresh = spans[0][1] + sum(end - start - overlap for start, end in spans[1:])
    assert fresh == n, "each window after the first adds its frames beyond the overlap"


@given(st.integers(1, TEN_MINUTES))
@example(1)
@example(77)
@example(78)
@example(TEN_MINUTES)
def test_the_releases_windows_stitch_to_its_length(n: int) -> None:
    """77 + 72 ceil((n - 77) / 72) frames from clips of 20 latent frames, 2 of them motion frames."""
    spans = windows(n, 77, 5)
    total = 77 + 72 * max(0, -(-(n - 77) // 72))
    assert n <= total
    assert spans[-1][0] + 77 == total
    # Every latent frame is named after its window and its place there.
    parts = [torch.arange(100.0 * index, 100.0 * index + 20).reshape(1, 20, 1, 1) for index in range(len(spans))]
    stitcher = Stitcher(2)
    pieces = [stitcher.push(part, last=index + 1 == len(parts)) for index, part in enumerate(parts)]
    joined = torch.cat(pieces, dim=1).flatten()
    assert 4 * (len(joined) - 1) + 1 == total
    expected = list(range(20))
    for index in range(1, len(spans)):
        expected[-1] = (expected[-1] + 100 * index + 1) / 2
        expected += range(100 * index + 2, 100 * index + 20)
    assert joined.tolist() == expected


def test_windows_refuse_an_overlap_without_end() -> None:
    with pytest.raises(ValueError, match="overlap 5"):
        windows(10, 5, 5)


@given(st.integers(1, 400), st.integers(1, 2000))
def test_pingpong_runs_back_and_forth(n_source: int, n_out: int) -> None:
    places = pingpong(n_source, n_out)
    assert len(places) == n_out
    assert places.min() >= 0
    assert places.max() < n_source
    shared = min(n_source, n_out)
    assert np.array_equal(places[:shared], np.arange(shared))
    if n_source > 1:
        assert (np.abs(np.diff(places)) == 1).all(), "neighbours stay neighbours, end frames are not repeated"


@given(st.integers(1, 10_000_000))
def test_output_lasts_as_long_as_the_sound(samples: int) -> None:
    frames = output_frames(samples, 16_000, 25)
    assert frames >= 1
    assert frames * 640 >= samples
    assert (frames - 1) * 640 < samples


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_runs_are_whole(flags: list[tuple[bool, bool]]) -> None:
    usable, breaks = (np.array(column) for column in zip(*flags, strict=True))
    spans = runs(usable, breaks)
    covered = np.zeros(len(usable), int)
    for start, end in spans:
        covered[start:end] += 1
        assert not breaks[start + 1 : end].any()
    assert np.array_equal(covered, usable.astype(int))
    for (_, end), (start, _) in itertools.pairwise(spans):
        assert start > end or breaks[start]
