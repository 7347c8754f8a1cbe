"""Worker: trains the transformer in one phase: generator, editor, lip or texture.

Output: `transformer/` (generator, editor) or `expert/` (LoRA of lip, texture), `curves.json`, `loss.png`,
`samples.png`; where the phase validates also `validation/`, a video and a picture for each look.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import LoraConfig as PeftLora
from pydantic import Field

from model_code import base
from model_code.backbones.load import (
    check_fit,
    load_audio,
    load_codec,
    load_identity,
    load_perceptual,
    load_prompts,
)
from model_code.backbones.transformer import DubbingTransformer, generator_to_editor
from model_code.config import Config, FlowConfig, MediaConfig, PhaseConfig, Sharding, TransformerConfig
from model_code.dubbing.model import load_transformer, save_expert, save_transformer
from model_code.errors import InputError
from model_code.files import write_json
from model_code.media.sample import StoredClip
from model_code.media.shards import Shard
from model_code.metrics.syncnet import SyncNet
from model_code.pairs.pair import Pair, StoredPair, accepted_pairs
from model_code.seeding import seed_for
from model_code.training.checkpoint import remove_checkpoints
from model_code.training.data import NAME_BYTES, CachedClip, ClipEncoder, EncodedClip, TrainingSet
from model_code.training.loop import Curves, Trainer
from model_code.training.losses import video_distance
from model_code.training.parallel import ALONE, Team, in_one_piece, team
from model_code.training.phases import Critics, Phase, make_phase
from model_code.training.validation import hold_out, opening
from model_code.training.warm_start import warm_start
from model_code.workers.clips import training_clips
from model_code.workers.pictures import contact_sheet, loss_curves
from model_code.workers.run import Progress, WorkerConfig, in_silence, main
from model_code.workers.validation import FOLDER, Validation, samples

logger = logging.getLogger(__name__)
EXPERTS = ("lip", "texture")
SAMPLES = 3
Source = StoredClip | StoredPair


class StartWeights(Config):
    """Registered weights that training starts from."""

    name: str = Field(description="Registered model and version.")
    digest: str = Field(description="Hash of their files' manifest.")
    folder: Path = Field(description="The transformer.")


class TrainConfig(WorkerConfig):
    """One phase: its numbers, its data, and where it starts."""

    phase: PhaseConfig
    transformer: TransformerConfig = TransformerConfig()
    flow: FlowConfig = FlowConfig()
    media: MediaConfig = MediaConfig()
    shards: tuple[Path, ...] = Field((), description="Clips: what the generator learns from.")
    pairs: tuple[Path, ...] = Field((), description="Companion pairs: what the others learn from.")
    variants: tuple[str, ...] = Field((), description="Kinds of pairs in use; for the record.")
    init: Path | None = Field(None, description="Output of the phase before; None: the shipped prior.")
    start: str | None = Field(None, description="Registered weights as settings name them; for the record.")
    weights: StartWeights | None = Field(None, description="They themselves; generator and editor, in place of init.")
    syncnet: Path | None = Field(None, description="Teacher of the lip phase; scores what validation shows.")
    identity: Path | None = Field(None, description="Teacher of the texture phase.")
    processes: int = Field(1, ge=1, description="How many train together, one a core or accelerator.")
    sharding: Sharding = Field("replicated", description="sharded: each holds only its part of the weights (FSDP).")


@dataclass(frozen=True)
class Trained:
    """What training leaves: the model, its phase and data, curves, and how many of its numbers learned."""

    model: DubbingTransformer
    phase: Phase
    data: TrainingSet
    curves: Curves
    parameters: int


def work(config: TrainConfig, progress: Progress) -> dict[str, Any]:
    """Encodes the data, trains, saves and shows samples."""
    Team(size=config.processes).check(config.phase.batch_size, config.phase.accumulate)
    with team(config.processes, config.sharding, config.device, train, config, config.work / "team") as own:
        trained = train(config, own, progress)
    result = write(config, trained)
    remove_checkpoints(config.work / "checkpoints")
    return result


def train(config: TrainConfig, own: Team = ALONE, progress: Progress = in_silence) -> Trained:
    """What each of the processes does; the one that leads has the whole model afterwards."""
    name, device = config.phase.phase, own.device(config.device)
    learned, held = read(config)

    def build() -> DubbingTransformer:
        model = start(config, codec.latent_channels)
        torch.nn.Module.to(model, device)
        return model

    with own.in_turn():
        codec = load_codec(config.backbones).requires_grad_(False).to(device)
        audio_encoder = load_audio(config.backbones, config.features).to(device)
        prompts = load_prompts(config.backbones, config.features)
        model = build()
    check_fit(model.config, codec, audio_encoder, prompts)
    encoder = ClipEncoder(codec, audio_encoder, model.config["context_fill"], config.latents, device)

    def dataset(clips: Sequence[EncodedClip | CachedClip]) -> TrainingSet:
        return TrainingSet(clips, config.phase.clip_frames, int(model.config["audio_window"]))

    data = dataset(encode(learned, encoder, own, progress))
    phase = make_phase(
        config.phase, config.flow, critics(config, codec, device), None if prompts is None else prompts.prompt
    )
    validation = None
    if held:
        clips = encode(held, encoder, own, progress)
        validation = Validation(
            phase,
            dataset(clips),
            dataset([opening(clips[0].load(), config.phase.clip_frames)]),
            sound(held[0], config.phase.clip_frames, config.media),
            device,
            SyncNet.from_pretrained(config.syncnet) if config.syncnet is not None else None,
            config.output / FOLDER if own.leads else None,
        )
    audio_encoder.to("cpu")  # nothing is left to be heard: its place goes to the training
    trainer = Trainer(
        model, phase, data, config.phase, config.work / "checkpoints", partial(progress, name), own, validation
    )
    curves = trainer.run()
    count = sum(value.numel() for value in trainer.parameters.values())
    return Trained(in_one_piece(model, trainer.parameters, build, own).eval(), phase, data, curves, count)


def write(config: TrainConfig, trained: Trained) -> dict[str, Any]:
    """Writes the model, its curves and pictures; the worker's result.

    How fast it trained stands in the result alone: the same data and settings make the same files.
    """
    model, curves = trained.model, trained.curves
    device = next(model.parameters()).device
    write_json(config.output / "curves.json", curves.rows)
    loss_curves(curves.rows, config.output / "loss.png")
    batch = trained.data.batch(seed_for("samples"), 0, SAMPLES).to(device)
    contact_sheet(samples(model, trained.phase, batch), config.output / "samples.png")
    if config.phase.phase in EXPERTS:
        save_expert(model, config.phase.phase, config.output / "expert")
    else:
        save_transformer(model, config.output / "transformer")
    looks = config.output / FOLDER
    told = curves.told()
    return {
        "metrics": {
            **{key: value for key, value in told[-1].items() if isinstance(value, float)},
            "steps": config.phase.steps,
            "clips": len(trained.data),
            "trained_parameters": trained.parameters,
            "processes": config.processes,
            "skipped_updates": len(curves.skipped),
            "rollbacks": len(curves.rollbacks),
        },
        "curves": told,
        "pictures": ["samples.png", "loss.png", *_named(looks, "*.png")[-1:]],
        "videos": _named(looks, "*.mp4"),
    }


def _named(folder: Path, pattern: str) -> list[str]:
    """Files beside the model, as the result names them."""
    return [f"{folder.name}/{path.name}" for path in sorted(folder.glob(pattern))]


def read(config: TrainConfig) -> tuple[list[Source], list[Source]]:
    """The generator's clips or the others' pairs: (what is trained on, what is held out for validation).

    Raises:
        InputError: There is nothing to learn from.
    """
    sources: list[Source]
    if config.phase.on_clips:
        sources = [*training_clips(config.shards)]
    else:
        sources = [*accepted_pairs([Shard(folder) for folder in config.pairs])]
        if not sources:
            raise InputError(f"no accepted pair in {len(config.pairs)} shards", "see the pair gate's reasons")
    if not config.phase.validate_every:
        return sources, []
    learned, held = hold_out(
        sources,
        config.phase.validation_share,
        lambda source: source.clip_id,
        lambda source: bool(source.row["n_frames"] >= config.phase.clip_frames),
    )
    # The one that becomes a video comes first: it has to fill a window.
    return learned, sorted(held, key=lambda source: bool(source.row["n_frames"] < config.phase.clip_frames))


def sound(source: Source, frames: int, media: MediaConfig) -> NDArray[np.float32]:
    """The samples of the first frames of what is to be made: the clip itself, or a pair's target."""
    found = source.read()
    clip = found.target if isinstance(found, Pair) else found
    return clip.audio[: frames * media.sample_rate // media.fps]


def encode(sources: Sequence[Source], encoder: ClipEncoder, own: Team, progress: Progress) -> list[CachedClip]:
    """Clips or pairs as latents, one after another; each process makes its part, and tells the others where it lies.

    What is encoded already is not even decoded.
    """

    def one(source: Source) -> str:
        name = encoder.name(source.clip_id, source.content(), masked=isinstance(source, StoredClip))
        if not encoder.path(name).is_file():
            found = source.read()
            if isinstance(found, Pair):
                encoder.write(name, found.target, found.companion, masked=False)
            else:
                encoder.write(name, found)
        return name

    part = sources[own.part]
    names = torch.zeros(-(-len(sources) // own.size), NAME_BYTES, dtype=torch.uint8)  # as many in every process
    for index, source in enumerate(part):
        names[index] = torch.tensor(list(bytes.fromhex(one(source))), dtype=torch.uint8)
        progress("encode", index + 1, len(part), {})
    every = own.gather(names.to(encoder.device)).tolist()[: len(sources)]
    return [
        CachedClip(source.clip_id, str(source.row["speaker_id"]), encoder.path(bytes(name).hex()))
        for source, name in zip(sources, every, strict=True)
    ]


def start(config: TrainConfig, latent_channels: int) -> DubbingTransformer:
    """The transformer that the phase begins with; only what it trains requires gradients.

    Raises:
        InputError: A phase after the generator without `init`.
    """
    name = config.phase.phase
    torch.manual_seed(seed_for("weights", name, config.phase.seed) % 2**32)
    if name in ("base", "generator"):
        return _weights(config, latent_channels)
    if config.init is None and config.weights is None:
        raise InputError(f"the {name} phase has no init", "give the output folder of the phase before")
    model = _weights(config, latent_channels)
    if name == "editor":
        return generator_to_editor(model, config.phase.companion).train()
    if config.phase.lora is None:
        raise InputError(f"the {name} phase has no lora", "give rank, alpha and targets")
    model.requires_grad_(False)
    lora = config.phase.lora
    model.add_adapter(
        PeftLora(r=lora.rank, lora_alpha=lora.alpha, target_modules=list(lora.targets)), adapter_name=name
    )
    return model


def _weights(config: TrainConfig, latent_channels: int) -> DubbingTransformer:
    """Registered weights, the phase before, the shipped prior if it has the shape, or random weights."""
    wanted = config.transformer.model_copy(update={"context_channels": latent_channels})
    if config.weights is not None:
        return warm_start(config.weights.folder, wanted, config.weights.name)
    if config.init is not None:
        return load_transformer(config.init / "transformer")
    if (base.FOLDER / "prior" / "config.json").is_file():
        prior: DubbingTransformer = base.load("prior")
        shape = {key: prior.config[key] for key in TransformerConfig.model_fields}
        if TransformerConfig(**{**shape, "patch_size": tuple(shape["patch_size"])}) == wanted:
            return prior
    logger.warning("the shipped prior has another shape: this run starts from random weights")
    return DubbingTransformer.build(wanted)


def critics(config: TrainConfig, codec: Any, device: torch.device) -> Critics:
    """The frozen networks that the phase's pixel losses need."""
    name = config.phase.phase
    if name == "lip":
        if config.syncnet is None:
            raise InputError("the lip phase has no syncnet", "give the output folder of the syncnet worker")
        return Critics(codec, sync=SyncNet.from_pretrained(config.syncnet).to(device).distance)
    if name == "texture":
        identity = load_identity(config.backbones, config.identity).to(device)
        perceptual = load_perceptual(config.backbones).to(device)
        return Critics(codec, identity=identity.distance, perceptual=video_distance(perceptual))
    return Critics(codec)


if __name__ == "__main__":
    sys.exit(main(TrainConfig, work))
