"""The dubbing model: codec, audio encoder, transformer, experts and settings as one folder.

A folder holds `codec/`, `audio_encoder/`, `transformer/`, one LoRA folder an expert below `experts/`, the encoded text
in `prompts.safetensors` if there is one, and `config.json`, written last: without it the model does not exist.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from model_code.backbones.audio import SpeechEncoder, audio_windows
from model_code.backbones.codec import BlockCodec, LatentCodec, WanCodec
from model_code.backbones.load import check_fit
from model_code.backbones.published_audio import CachedEncoder, JoinedEncoders, read_audio_encoder
from model_code.backbones.text import Prompts
from model_code.backbones.transformer import DubbingTransformer
from model_code.config import Config, FlowConfig, Stitching
from model_code.dubbing.color import match_color
from model_code.dubbing.longform import Stitcher, windows
from model_code.dubbing.noise import noisiness
from model_code.dubbing.sampling import Beat, Crew, WindowSampler
from model_code.dubbing.strand import DubbedPart, DubItem, Reel, Strand
from model_code.errors import InputError
from model_code.files import write_json
from model_code.media.audio import Sound
from model_code.seeding import seed_for
from model_code.training.data import latent_length, masked_context, to_frames, to_network

log = logging.getLogger(__name__)

SAMPLES_PER_FRAME = 640
Scalar = TypeVar("Scalar", bound=np.generic)
LORA_FILE = "pytorch_lora_weights.safetensors"
PROMPTS_FILE = "prompts.safetensors"
CODECS: dict[str, type[BlockCodec] | type[WanCodec]] = {"block": BlockCodec, "wan": WanCodec}
Mode = Literal["editor", "generator"]


class DubberConfig(Config):
    """What the weights do not say."""

    mode: Mode = Field(description="editor: sees the whole input; generator: inpaints.")
    codec: Literal["block", "wan"] = "block"
    flow: FlowConfig = FlowConfig()
    crop_size: int = Field(96, description="Side of the crops in pixels.")
    crop_scale: float | None = Field(
        None, description="Crop side over the longer side of the face's box; None: `media.crop_scale` where it dubs."
    )
    window_frames: int = Field(25, description="Frames of one pass.")
    overlap_frames: int = Field(
        5, description="Frames that a window takes over from the one before as motion frames; 0: it begins anew."
    )
    reference: Literal["inside", "elsewhere"] = Field(
        "inside",
        description="Generator: where each window's reference frame is from: its middle, or as far away as can be. "
        "The hole is filled from there too, but not from the middle, which would show its own mouth: the next frame.",
    )
    stitching: Stitching = Field("pixels", description="As in `DubbingConfig`.")
    experts: tuple[str, ...] = Field((), description="LoRA adapters: `lip`, `texture`.")
    noise_retries: int = Field(
        2, ge=0, description="How often a window that came out as noise is made again, each time with another seed."
    )
    prompt: str | None = Field(
        None, description="Its text, which `prompts.safetensors` holds encoded; None: it has none."
    )
    negative_prompt: str | None = Field(None, description="Text of the branch without reference and sound, if another.")


class DubbingPipelineModel:
    """Dubs face crops to new speech.

    Args:
        config: Settings.
        codec: Latent codec.
        audio_encoder: Gives 50 Hz features.
        transformer: With `config.experts` as loaded adapters.
        prompts: The encoded text of `config.prompt`.

    Example:
        >>> model = DubbingPipelineModel.from_pretrained("models/dubber")
        >>> dubbed = model.dub_crops(crops, samples, seed=0, landmarks=landmarks)
    """

    def __init__(
        self,
        config: DubberConfig,
        codec: LatentCodec,
        audio_encoder: SpeechEncoder,
        transformer: DubbingTransformer,
        prompts: Prompts | None = None,
    ) -> None:
        channels, residual = transformer.config["context_channels"], transformer.config["residual"]
        if (config.mode == "generator" and not channels) or (config.mode == "editor" and channels and not residual):
            raise InputError(
                f"a transformer with {channels} context channels and residual={residual} as {config.mode}",
                "a generator has context channels, an editor has them only if it is residual",
            )
        if config.stitching == "latents" and not config.overlap_frames:
            raise InputError(
                "windows without motion frames have no seam at which their latents could be joined",
                'set overlap_frames to 4n+1, or stitching to "pixels"',
            )
        check_fit(transformer.config, codec, audio_encoder, prompts)
        self.config, self.codec, self.audio_encoder, self.prompts = config, codec, audio_encoder, prompts
        self.transformer = transformer.eval()
        self.device = next(transformer.parameters()).device
        self._sampler = WindowSampler(transformer, config.experts)

    def to(self, device: torch.device | str) -> DubbingPipelineModel:
        """Moves every network."""
        self.device = torch.device(device)
        for network in (self.codec, self.audio_encoder, self.transformer):
            nn.Module.to(cast(nn.Module, network), self.device)
        return self

    def with_flow(self, flow: FlowConfig) -> DubbingPipelineModel:
        """The same networks with another sampler's settings."""
        config = self.config.model_copy(update={"flow": flow})
        made = DubbingPipelineModel(config, self.codec, self.audio_encoder, self.transformer, self.prompts)
        made._sampler = self._sampler
        return made

    def sample_with(self, crew: Crew, folder: Path) -> None:
        """Samples with these processes from now on. Any other model that did may be used no more.

        Args:
            crew: From `sampling_crew`.
            folder: That this model was read from; no longer needed when this returns.

        Raises:
            InputError: The transformer's heads cannot be shared out among so many.
        """
        self._sampler.join(crew)
        crew.load(self._sampler, folder, self.config.experts)

    def dub_crops(
        self,
        frames: NDArray[np.uint8],
        samples: NDArray[np.float32],
        seed: int,
        landmarks: NDArray[np.float32] | None = None,
    ) -> NDArray[np.uint8]:
        """Dubs one clip of crops (T, S, S, 3), of any length; same shape back. Models that mask need `landmarks`."""
        return self.dub_many([DubItem(frames, samples, seed, landmarks)])[0]

    def dub_many(
        self,
        items: Sequence[DubItem],
        batch_size: int = 8,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[NDArray[np.uint8]]:
        """Dubs many clips; every clip's result is the same in any company up to rounding.

        Args:
            items: What to dub.
            batch_size: Windows in one pass.
            progress: Told (windows done, windows in all).

        Returns:
            One (T, S, S, 3) array an item.

        Raises:
            InputError: Crops of another size than the model's, or a generator without landmarks.
        """
        parts: list[list[NDArray[np.uint8]]] = [[] for _ in items]
        for number, part in self._in_windows(items, batch_size, progress):
            parts[number].append(part.frames)
        return [np.concatenate(own) for own in parts]

    def dub_stream(
        self,
        frames: Iterable[NDArray[np.uint8]],
        count: int,
        samples: Sound,
        seed: int,
        beat: Beat | None = None,
        landmarks: NDArray[np.float32] | None = None,
    ) -> Iterator[DubbedPart]:
        """Dubs one clip of `count` crops (S, S, 3) as they come, in memory that does not grow with its length.

        Only the sound's features stay whole, 13 kB a second of them. `beat` is called before every step of sampling,
        also of a window that is made again; what it raises ends the dub. `landmarks` (count, 68, 2) are those of the
        crops, for models whose `flow.companion_share` is below 1.

        Raises:
            InputError: As `dub_many`.
        """
        reel = Reel(frames, count, behind=self.config.window_frames)
        for _, part in self._in_windows([DubItem(reel, samples, seed, landmarks)], beat=beat):
            yield part

    @torch.no_grad()
    def _in_windows(
        self,
        items: Sequence[DubItem],
        batch_size: int = 1,
        progress: Callable[[int, int], None] | None = None,
        beat: Beat | None = None,
    ) -> Iterator[tuple[int, DubbedPart]]:
        """Number of the item and its next frames.

        The clips go window by window: the n-th windows of all clips share batches, each starting from the
        last `overlap_frames` of its clip's window before.
        """
        for item in items:
            self._check(item)
        strands = [self._strand(item) for item in items]
        length, overlap = self.config.window_frames, self.config.overlap_frames
        done, total = 0, sum(len(strand.starts) for strand in strands)
        for index in range(max((len(strand.starts) for strand in strands), default=0)):
            active = [number for number, strand in enumerate(strands) if len(strand.starts) > index]
            for begin in range(0, len(active), batch_size):
                chosen = active[begin : begin + batch_size]
                start = strands[chosen[0]].starts[index]
                latents = self._window([strands[number] for number in chosen], start, beat=beat)
                for number, made, video in zip(chosen, latents, self.codec.decode(latents), strict=True):
                    strand, source = strands[number], _part(strands[number].item.frames, start, length)
                    frames = to_frames(video)
                    window, own, retries, noise = self._without_noise(strand, source, start, frames, made, beat)
                    if strand.joined is None:
                        fresh = window[overlap if index else 0 :]
                    else:
                        window = match_color(window, source)
                        fresh = to_frames(strand.decode(own, last=index + 1 == len(strand.starts)))
                    strand.motion = window[length - overlap :] if overlap else None
                    yield number, DubbedPart(strand.take(fresh), start, retries, noise)
                done += len(chosen)
                if progress is not None:
                    progress(done, total)

    def _without_noise(
        self,
        strand: Strand,
        source: NDArray[np.uint8],
        start: int,
        window: NDArray[np.uint8],
        latents: Tensor,
        beat: Beat | None,
    ) -> tuple[NDArray[np.uint8], Tensor, int, bool]:
        """A window, made again while it looks like noise: the best frames, their latents, how often, whether still."""
        best, retries = (noisiness(window, source), window, latents), 0
        while best[0] > 1 and retries < self.config.noise_retries:
            retries += 1
            again = self._window([strand], start, retries, beat)
            frames = to_frames(self.codec.decode(again)[0])
            best = min(best, (noisiness(frames, source), frames, again[0]), key=lambda made: made[0])
        if retries:
            log.warning(
                "the window from frame %d looked like noise: %d more seeds, noisiness now %.2f (noise from 1)",
                start,
                retries,
                best[0],
            )
        return best[1], best[2], retries, best[0] > 1

    def _strand(self, item: DubItem) -> Strand:
        length, overlap = self.config.window_frames, self.config.overlap_frames
        starts = [start for start, _ in windows(len(item.frames), length, overlap)]
        features = self.audio_encoder.encode(item.samples, len(item.frames) * SAMPLES_PER_FRAME)
        stitched = self.config.stitching == "latents"
        joined = (Stitcher(latent_length(overlap)), self.codec.in_pieces()) if stitched else None
        return Strand(item, features, starts, joined)

    def _window(self, strands: Sequence[Strand], start: int, retry: int = 0, beat: Beat | None = None) -> Tensor:
        """Clean latents (B,C,F,h,w) of the window from frame `start` of every strand; each retry has other noise."""
        config = self.config
        flow = config.flow if config.mode == "editor" else config.flow.for_generator
        length = latent_length(config.window_frames)
        items = [strand.item for strand in strands]
        frames = [_part(item.frames, start, config.window_frames) for item in items]
        motion = [strand.motion for strand in strands if strand.motion is not None]
        masked = face = None
        if config.mode == "editor":
            reference = self._encode(frames)
            context = reference if self.transformer.config["context_channels"] else None
            if self.masks:
                masked, face = self._masked_view(items, frames, start)
        else:
            context, reference = self._masked_view(items, frames, start)
        audio = np.stack(
            [audio_windows(strand.features, length, self._audio_window, start_frame=start) for strand in strands]
        )
        noise = torch.stack([self._noise(item.seed, start, length, retry) for item in items]).to(self.device)
        text, negative = (None, None) if self.prompts is None else self.prompts.batch(len(items), self.device)
        given = {
            "noise": noise,
            "reference": reference,
            "audio": torch.from_numpy(audio).to(self.device),
            "text": text,
            "negative": negative,
            "context": context,
            "masked": masked,
            "face": face,
            "motion": self._encode(motion) if motion else None,
        }
        return self._sampler(flow, {name: value for name, value in given.items() if value is not None}, beat)

    @property
    def masks(self) -> bool:
        """Whether it masks faces, for which it needs landmarks."""
        if self.config.mode == "generator":
            return True
        return self.config.flow.companion_share < 1 and bool(self.transformer.config["context_channels"])

    @property
    def _audio_window(self) -> int:
        return int(self.transformer.config["audio_window"])

    def _encode(self, clips: Sequence[NDArray[np.uint8]]) -> Tensor:
        return self.codec.encode(torch.stack([to_network(clip) for clip in clips]).to(self.device))

    def _reference_frame(self, n_frames: int, start: int) -> int:
        """The frame of the item that a generator takes the face from, for the window at `start`."""
        middle = start + self.config.window_frames // 2
        if self.config.reference == "elsewhere":
            return 0 if middle > n_frames // 2 else n_frames - 1
        return min(middle, n_frames - 1)

    def _fill_frame(self, n_frames: int, start: int) -> int:
        """The frame whose face fills the hole in the window at `start`; one of the window's would show its own mouth.

        The first frame after the window, or where the clip ends the last one before it: heads have hardly moved. A clip
        of one window has neither.
        """
        after = start + self.config.window_frames
        if self.config.reference == "elsewhere" or (after >= n_frames and not start):
            return self._reference_frame(n_frames, start)
        return after if after < n_frames else start - 1

    def _masked_view(
        self, items: Sequence[DubItem], frames: Sequence[NDArray[np.uint8]], start: int
    ) -> tuple[Tensor, Tensor]:
        """Latents of the window from frame `start` with the face masked (B,C,F,h,w), and of the frame that shows it."""
        faces, hidden = [], []
        fill = self.transformer.config["context_fill"]
        for item, window in zip(items, frames, strict=True):
            source = self._fill_frame(len(item.frames), start)
            faces.append(_part(item.frames, self._reference_frame(len(item.frames), start), 1))
            # The frame that the hole shows comes first, as it is none of the window's.
            landmarks, occluder = (
                None if each is None else np.concatenate([_part(each, source, 1), _part(each, start, len(window))])
                for each in (item.landmarks, item.occluder)
            )
            assert landmarks is not None
            shown = np.concatenate([_part(item.frames, source, 1), window])
            hidden.append(masked_context(shown, landmarks, occluder, fill, 0)[1:])
        return self._encode(hidden), self._encode(faces)

    def _noise(self, seed: int, start: int, length: int, retry: int) -> Tensor:
        side = self.config.crop_size // self.codec.spatial_factor
        generator = torch.Generator().manual_seed(seed_for("dub", seed, start, *([retry] if retry else [])))
        return torch.randn(self.codec.latent_channels, length, side, side, generator=generator)

    def _check(self, item: DubItem) -> None:
        size = self.config.crop_size
        if item.frames.shape[1:] != (size, size, 3) or not len(item.frames):
            raise InputError(f"crops of shape {item.frames.shape}", f"this model takes (T, {size}, {size}, 3)")
        if item.landmarks is None and self.masks:
            raise InputError(
                f"{self.config.mode} of a clip without landmarks", "give DubItem.landmarks: a mask is made of them"
            )

    def save_pretrained(self, folder: Path | str, dtype: torch.dtype = torch.float32) -> None:
        """Writes the folder; config.json last."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").unlink(missing_ok=True)
        self.codec.save_pretrained(folder / "codec")
        self.audio_encoder.save_pretrained(folder / "audio_encoder")
        save_transformer(self.transformer, folder / "transformer", dtype)
        for name in self.config.experts:
            save_expert(self.transformer, name, folder / "experts" / name)
        if self.prompts is not None:
            self.prompts.save(folder / PROMPTS_FILE)
        write_json(folder / "config.json", self.config.model_dump(mode="json"))

    @classmethod
    def from_pretrained(
        cls, folder: Path | str, *, experts: Sequence[str] | None = None, features: Path | None = None
    ) -> DubbingPipelineModel:
        """Reads what `save_pretrained` wrote.

        Args:
            folder: Of the model.
            experts: Those to load; None: all that it has.
            features: Folder in which the features of a published audio encoder are kept.

        Raises:
            InputError: There is no complete model.
        """
        folder = Path(folder)
        config = read_config(folder)
        if experts is not None:
            config = config.model_copy(update={"experts": tuple(experts)})
        transformer = read_transformer(folder, config.experts)
        codec = CODECS[config.codec].from_pretrained(folder / "codec")
        audio_encoder: SpeechEncoder = read_audio_encoder(folder / "audio_encoder")
        if features is not None and isinstance(audio_encoder, JoinedEncoders):
            audio_encoder = CachedEncoder(audio_encoder, features)
        prompts = None if config.prompt is None else Prompts.load(folder / PROMPTS_FILE)
        return cls(config, codec, audio_encoder, transformer, prompts)


def read_config(folder: Path) -> DubberConfig:
    """The settings of the model in `folder`.

    Raises:
        InputError: There is no complete model.
    """
    if not (folder / "config.json").is_file():
        raise InputError(f"'{folder}' is no dubbing model: it has no config.json", "train it again, or name its folder")
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    # A model keeps its ways: older ones took all of the noise.
    values["flow"] = {"noise_scale": 1.0, "temperature": 1.0, **values.get("flow", {})}
    return DubberConfig.model_validate(values)


def read_transformer(folder: Path, experts: Sequence[str]) -> DubbingTransformer:
    """The transformer of the dubber in `folder` with these experts' adapters, in evaluation mode."""
    transformer = load_transformer(folder / "transformer")
    for name in experts:
        add_expert(transformer, name, folder / "experts" / name)
    return transformer.eval()


def save_transformer(transformer: DubbingTransformer, folder: Path | str, dtype: torch.dtype = torch.float32) -> None:
    """Writes the plain transformer, without adapters, as diffusers does; the same one gives the same bytes anywhere."""
    # diffusers also keeps the folder that a model was read from.
    plain = DubbingTransformer.from_config({**transformer.config, "_name_or_path": ""})
    state = {name.replace(".base_layer.", "."): value for name, value in transformer.state_dict().items()}
    plain.load_state_dict({name: value for name, value in state.items() if ".lora_" not in name})
    plain.to(dtype).save_pretrained(folder)


def load_transformer(folder: Path | str) -> DubbingTransformer:
    """Reads a transformer in single precision and evaluation mode."""
    if not (Path(folder) / "config.json").is_file():
        raise InputError(f"'{folder}' holds no transformer", "expected config.json and safetensors there")
    # Not memory-mapped: what happens to the file later must not happen to a model that serves.
    return DubbingTransformer.from_pretrained(folder, torch_dtype=torch.float32, disable_mmap=True).eval()


def save_expert(transformer: DubbingTransformer, name: str, folder: Path | str) -> None:
    """Writes a LoRA adapter; the same adapter gives the same bytes in every process."""
    # A set, written in the order of this process's string hashes otherwise.
    config = transformer.peft_config[name]
    config.target_modules = sorted(config.target_modules)
    transformer.save_lora_adapter(str(folder), adapter_name=name, weight_name=LORA_FILE)
    _sort_header(Path(folder) / LORA_FILE)


def _sort_header(path: Path) -> None:
    """Rewrites a safetensors file with its header sorted: the library writes metadata in a hash map's random order."""
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    path.write_bytes(len(header).to_bytes(8, "little") + header + content[end:])


def add_expert(transformer: DubbingTransformer, name: str, folder: Path | str) -> None:
    """Loads a LoRA adapter that `save_expert` wrote."""
    transformer.load_lora_adapter(
        str(folder), adapter_name=name, prefix=None, weight_name=LORA_FILE, use_safetensors=True, local_files_only=True
    )


def _part(values: NDArray[Scalar] | Reel, start: int, count: int) -> NDArray[Any]:
    """`count` frames from `start`, the last one repeated beyond the end."""
    if isinstance(values, Reel):
        return values.part(start, count)
    return values[np.minimum(np.arange(start, start + count), len(values) - 1)]
