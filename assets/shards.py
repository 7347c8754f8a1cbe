"""Reading shards for metadata; training reads them in its own process."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from numpy.typing import NDArray


def manifest(folder: Path) -> list[dict[str, Any]]:
    """The rows of a shard."""
    return pq.read_table(folder / "manifest.parquet").to_pylist()


def manifest_table(folder: Path) -> pd.DataFrame:
    """The rows of a shard with all columns, even where there is no row."""
    return pq.read_table(folder / "manifest.parquet").to_pandas()


def first_frames(folder: Path, count: int, member: str = "crop.mp4") -> list[NDArray[np.uint8]]:
    """The middle frame of up to `count` samples, spread over the shard."""
    from model_code.media.shards import Shard
    from model_code.media.video import from_mp4_bytes

    shard = Shard(folder)
    keys = shard.keys
    chosen = keys[:: max(1, len(keys) // count)][:count]
    videos = [from_mp4_bytes(shard.read(key, [member])[member]) for key in chosen]
    return [video[len(video) // 2] for video in videos]
