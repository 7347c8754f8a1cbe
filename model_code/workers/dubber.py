"""Worker: puts editor, experts, codec, audio encoder and settings together as one model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from pydantic import Field

from model_code.config import DubbingConfig, FlowConfig, MediaConfig, WindowConfig
from model_code.diffusion.schedule import check_experts, expert_windows, sampling_times
from model_code.dubbing.assemble import on_backbones
from model_code.dubbing.model import DubberConfig, add_expert, load_transformer
from model_code.files import write_json
from model_code.workers.run import Progress, WorkerConfig, main


class DubberWorkerConfig(WorkerConfig):
    """The parts."""

    editor: Path
    lip_expert: Path
    texture_expert: Path
    flow: FlowConfig = FlowConfig()
    dubbing: DubbingConfig = DubbingConfig()
    media: MediaConfig = MediaConfig()
    phase: WindowConfig = WindowConfig()
    versions: dict[str, str] = Field(default_factory=dict, description="Part -> its version in the data registry.")
    model_name: str = ""


def work(config: DubberWorkerConfig, progress: Progress) -> dict[str, Any]:
    """Loads the parts, checks that each expert acts on two steps at least, and saves the folder."""
    flow = config.flow
    check_experts(sampling_times(flow), expert_windows(flow))
    transformer = load_transformer(config.editor / "transformer")
    for name, folder in (("lip", config.lip_expert), ("texture", config.texture_expert)):
        add_expert(transformer, name, folder / "expert")
    settings = DubberConfig(
        mode="editor",
        flow=flow,
        crop_size=config.media.crop_size,
        crop_scale=config.media.crop_scale,
        window_frames=config.phase.clip_frames,
        overlap_frames=config.phase.motion_frames,
        stitching=config.dubbing.stitching,
        experts=("lip", "texture"),
    )
    model = on_backbones(settings, config.backbones, transformer, config.features)
    write_json(config.output / "parts.json", config.versions)
    model.save_pretrained(config.output)
    progress("dubber", 1, 1, {})
    parameters = sum(value.numel() for value in transformer.parameters())
    return {"metrics": {"parameters": parameters}, "versions": config.versions}


if __name__ == "__main__":
    sys.exit(main(DubberWorkerConfig, work))
