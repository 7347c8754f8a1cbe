"""What is known of a dub before any crop is dubbed: which source frame when, whose face, where it is."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model_code.config import MediaConfig
from model_code.dubbing.listener import Listener
from model_code.dubbing.longform import output_frames, pingpong
from model_code.dubbing.who import Progress, Shots, first, told
from model_code.errors import InputError
from model_code.faces.crop import to_crop
from model_code.faces.detect import FaceFinder
from model_code.faces.landmarker import Landmarker
from model_code.faces.masks import paste_mask
from model_code.media.shots import find_cuts
from model_code.media.video import stream_video

F32 = NDArray[np.float32]


@dataclass(frozen=True)
class DubPlan:
    """Everything known before dubbing: a few hundred bytes a frame.

    Attributes:
        source: (N,) source frame of every output frame.
        boxes: (M, 4) crop box of every source frame.
        landmarks: (M, 68, 2) in pixels of the source frame.
        dubbed: (N,) which output frames get a dubbed crop.
        breaks: (N,) output frames at which another shot begins.
        faces: Most faces seen at once.
        shots: Number of shots.
        longer: Whether the video goes on after the sound's end.
        chosen: Which of several faces is dubbed, in words.
    """

    source: NDArray[np.intp]
    boxes: F32
    landmarks: F32
    dubbed: NDArray[np.bool_]
    breaks: NDArray[np.bool_]
    faces: int
    shots: int
    longer: bool
    chosen: str

    @property
    def repeats(self) -> bool:
        """Whether source frames are shown again."""
        return len(self.source) > len(self.boxes)

    def crop_landmarks(self, sources: slice | NDArray[np.intp], size: int) -> F32:
        """(n, 68, 2) in pixels of these source frames' crops."""
        return to_crop(self.landmarks[sources], self.boxes[sources], size)

    def mask(self, source: int, size: int) -> F32:
        """(size, size) paste weights of a source frame's crop."""
        return paste_mask(self.crop_landmarks(slice(source, source + 1), size), size)[0]


def plan_dub(
    video: str | Path,
    n_samples: int,
    landmarker: Landmarker,
    config: MediaConfig,
    speaker: int | Listener | None = None,
    progress: Progress | None = None,
) -> DubPlan:
    """Looks for cuts and follows the face, in two passes over the file; a listener needs one more for every face.

    Args:
        video: Any video file within the limits.
        n_samples: Length of the new sound.
        landmarker: Finds and follows the face.
        config: Rates and limits.
        speaker: As in `dub_file`.
        progress: Told of every frame.

    Raises:
        InputError: Files that cannot be used, or no such face in any frame.
    """
    n_out = output_frames(n_samples, config.sample_rate, config.fps)
    looked = told(first(stream_video(video, config), n_out + 1), n_out + 1, "look for cuts", progress)
    cuts, n_source = find_cuts(looked)
    used = min(n_source, n_out)
    cuts = [cut for cut in cuts if cut < used]
    shots = Shots(video, list(pairwise([0, *cuts, used])), FaceFinder(landmarker), config, progress)
    tracks, chosen = shots.talking(speaker) if isinstance(speaker, Listener) else shots.numbered(speaker)
    landmarks, boxes = np.zeros((used, 68, 2), np.float32), np.zeros((used, 4), np.float32)
    found = np.zeros(used, bool)
    faces = 0
    for (start, end), track in zip(shots.spans, tracks, strict=True):
        if track is not None:
            landmarks[start:end], boxes[start:end], found[start:end] = track.landmarks, track.boxes, track.found
            faces = max(faces, track.faces)
    if not found.any():
        name = Path(video).name
        if isinstance(speaker, int) and speaker > 1:
            raise InputError(f"'{name}' never shows {speaker} faces at once", "give the speaker a lower number")
        raise InputError(f"no face was found in '{name}'", "give a video with a face in view")
    source = pingpong(used, n_out)
    shot = np.searchsorted(np.array(cuts), np.arange(used), side="right")[source]
    breaks = np.diff(shot, prepend=shot[:1]) != 0
    return DubPlan(source, boxes, landmarks, found[source], breaks, faces, len(cuts) + 1, n_source > n_out, chosen)
