"""The dubbing transformer: X-Dub's released design (Wan2.2's blocks with reference tokens and audio attention)."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from model_code.backbones.attention import AudioProjection, in_float32, modulate, rotary_table, sinusoidal_embedding
from model_code.backbones.block import DubbingBlock, Head
from model_code.backbones.refiner import LocalRefiner
from model_code.backbones.reuse import Remembered, StepReuse, of_samples, seen_by
from model_code.backbones.split import Split, check_heads
from model_code.config import CompanionInput, ContextFill, ReferenceAttention, TransformerConfig
from model_code.errors import InputError
from model_code.team import Member

READS_CONTEXT = frozenset({"patch_embedding.weight", "refiner.enter.weight"})
"""Weights whose first input channels are the context's, where there are any."""


def start_xavier(network: nn.Module) -> None:
    """Xavier weights and no bias for every linear layer in `network`."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class DubbingTransformer(ModelMixin, ConfigMixin, PeftAdapterMixin):  # type: ignore[misc]
    """DiT over reference and target tokens, with keys named as in X-Dub's released checkpoint.

    The target's tokens stand at their time and place; reference token (i,j,k) at the same time and shifted space
    (j+h, k+w) (paper, section 3). A generator has `context_channels` > 0: its target input is channel-wise
    [masked video, noisy target], its reference [0, reference]; `generator_to_editor` slices the context away.
    With `residual` the output starts from the context, or, where noisy latents are preconditioned, from the best linear
    estimate that they and the context allow; it then means clean latents.

    Args: as in `model_code.config.TransformerConfig`.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["DubbingBlock"]  # type: ignore[assignment]  # noqa: RUF012 - diffusers' own form

    @register_to_config
    def __init__(
        self,
        dim: int = 192,
        num_layers: int = 6,
        num_heads: int = 6,
        ffn_dim: int = 768,
        freq_dim: int = 128,
        in_channels: int = 48,
        context_channels: int = 0,
        out_channels: int = 48,
        patch_size: tuple[int, int, int] = (1, 2, 2),
        text_dim: int | None = None,
        audio_dim: int = 64,
        audio_window: int = 16,
        audio_inner_dim: int = 96,
        audio_heads: int = 4,
        audio_layers: int = 2,
        positions: int = 0,
        audio_modulation: bool = False,
        residual: bool = False,
        reference_tokens: bool = True,
        context_fill: ContextFill = "grey",
        refiner_width: int = 128,
        refiner_layers: int = 0,
        precondition: float = 0.0,
        spatial_attention: bool = False,
        reference_attention: ReferenceAttention = "full",
    ) -> None:
        super().__init__()
        if precondition is True:
            raise InputError(
                "a transformer with precondition=true", "it was made before that was a number: train it again"
            )
        if residual and context_channels not in (0, out_channels):
            raise InputError(
                f"residual with {context_channels} context and {out_channels} output channels",
                "what is known must have the output's channels",
            )
        if dim % num_heads or (dim // num_heads) % 2:
            raise InputError(f"width {dim} with {num_heads} heads", "a head's width must be whole and even")
        if patch_size[0] != 1:
            raise InputError(f"patch_size {tuple(patch_size)}", "patches span one latent frame: (1, p, p)")
        patch = (patch_size[0], patch_size[1], patch_size[2])
        self.patch_embedding = nn.Conv3d(in_channels + context_channels, dim, kernel_size=patch, stride=patch)
        self.text_embedding = (
            nn.Sequential(nn.Linear(text_dim, dim), nn.GELU(approximate="tanh"), nn.Linear(dim, dim))
            if text_dim is not None
            else None
        )
        self.time_embedding = nn.Sequential(nn.Linear(freq_dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, (9 if spatial_attention else 6) * dim))
        self.audio_embedding = AudioProjection(audio_dim, audio_inner_dim, audio_heads, audio_layers, dim)
        self.audio_shift = (
            nn.Sequential(nn.Flatten(-2), nn.Linear(audio_window * audio_dim, dim), nn.SiLU(), nn.Linear(dim, dim))
            if audio_modulation
            else None
        )
        self.place_table = nn.Parameter(torch.zeros(dim, positions, positions)) if positions else None
        self.blocks = nn.ModuleList(
            DubbingBlock(dim, num_heads, ffn_dim, text_dim is not None, spatial_attention, reference_attention == "own")
            for _ in range(num_layers)
        )
        self.head = Head(dim, out_channels * patch_size[0] * patch_size[1] * patch_size[2])
        self.refiner = (
            LocalRefiner(in_channels + context_channels, out_channels, refiner_width, refiner_layers, dim)
            if refiner_layers
            else None
        )
        self.gradient_checkpointing = False
        self.member = Member()
        self._initialise()

    @classmethod
    def build(cls, config: TransformerConfig) -> DubbingTransformer:
        """A new transformer of this shape."""
        return cls(**config.model_dump())

    def _initialise(self) -> None:
        """Xavier weights and open gates; new parts (what sound adds, head) start at zero."""
        start_xavier(self)
        nn.init.xavier_uniform_(self.patch_embedding.weight.flatten(1))
        for block in self.blocks:
            cast(DubbingBlock, block).modulation.data[:, 2::3] += 1
        for layer in (self.time_embedding[0], self.time_embedding[2]):
            nn.init.normal_(cast(nn.Linear, layer).weight, std=0.02)
        outputs = [cast(DubbingBlock, block).audio_attn.o.weight for block in self.blocks]
        if self.audio_shift is not None:
            outputs.append(cast(nn.Linear, self.audio_shift[-1]).weight)
        for fresh in (self.patch_embedding.bias, self.head.head.weight, *outputs):
            nn.init.zeros_(cast(Tensor, fresh))
        if self.refiner is not None:
            self.refiner.start_closed()

    def sample_with(self, own: Member) -> None:
        """From now on the blocks' tokens are shared out among these processes, which must call this with equal inputs.

        Every one of them gets all of the output. For sampling: nothing carries gradients from process to process.

        Raises:
            InputError: The heads cannot be shared out evenly.
        """
        check_heads(self.config["num_heads"], own)
        self.member = own

    def _split(self, x: Tensor) -> Split | None:
        """How the tokens of x (B,frames,tokens,dim) are shared out."""
        if self.member.size == 1:
            return None
        if torch.is_grad_enabled():
            raise RuntimeError("a transformer whose tokens are shared out cannot be trained")
        return Split(self.member, x.shape[2])

    def _embed(self, latents: Tensor, weight: Tensor) -> Tensor:
        """Patches (B,C,F,H,W) into tokens (B,F,tokens,dim) with the patch embedding's `weight` (or a slice of it)."""
        size = weight.shape[-1]
        batch, channels, frames, height, width = latents.shape
        patches = latents.reshape(batch, channels, frames, height // size, size, width // size, size)
        patches = patches.permute(0, 2, 3, 5, 1, 4, 6).reshape(batch, frames, -1, channels * size * size)
        return F.linear(patches, weight.flatten(1), self.patch_embedding.bias)

    def _places(self, place: tuple[int, int, int, int], rows: int, columns: int) -> Tensor:
        """(tokens,dim) what is learned of the places (top, left, whole rows, whole columns) in tokens."""
        assert self.place_table is not None
        top, left, *whole = place
        table: Tensor = self.place_table
        if list(table.shape[1:]) != whole:
            table = F.interpolate(table[None], whole, mode="bilinear", align_corners=False)[0]
        return table[:, top : top + rows, left : left + columns].flatten(1).T

    def _unpatch(self, x: Tensor, height: int, width: int) -> Tensor:
        """(B,F,tokens,p*p*C) -> (B,C,F,height,width); channels vary fastest, as in the released head."""
        size = self.config["patch_size"][1]
        batch, frames = x.shape[:2]
        x = x.reshape(batch, frames, height // size, width // size, size, size, -1)
        return x.permute(0, 6, 1, 2, 4, 3, 5).reshape(batch, -1, frames, height, width)

    def _tables(
        self, frames: int, height: int, width: int, place: tuple[int, int, int, int] | None, beside: bool
    ) -> tuple[tuple[Tensor, Tensor], Tensor | None]:
        """Rotary tables of `frames` frames' tokens and what is learned of their places.

        Args:
            frames: Latent frames.
            height, width: Latent cells.
            place: As in `forward`.
            beside: The reference's, which stand in shifted space.
        """
        size = self.config["patch_size"][1]
        rows, columns = height // size, width // size
        top, left, whole_rows, whole_columns = (n // size for n in place or (0, 0, height, width))
        learned = None
        if self.place_table is not None:
            learned = self._places((top, left, whole_rows, whole_columns), rows, columns)
        corner = (top + whole_rows, left + whole_columns) if beside else (top, left)
        head_dim = self.config["dim"] // self.config["num_heads"]
        return rotary_table(head_dim, (frames, rows, columns), corner, self.patch_embedding.weight.device), learned

    def _time(self, times: Tensor, shift: Tensor | None) -> tuple[Tensor, Tensor]:
        """(B,frames) times -> (B,frames,dim) embedding, shifted by sound, and its projection for the blocks."""
        embedded = in_float32(self.time_embedding, sinusoidal_embedding(times * 1000, self.config["freq_dim"]))
        if shift is not None:
            embedded = embedded + shift
        return embedded, in_float32(self.time_projection, embedded).unflatten(-1, (-1, self.config["dim"]))

    @torch.no_grad()
    def remember_sound(self, audio: Tensor) -> Remembered:
        """(B,F,window,audio_dim) features as `forward` takes them again and again."""
        sound = self.audio_embedding(audio.flatten(0, 1))
        seen = [cast(DubbingBlock, block).audio_attn.keys_values(sound) for block in self.blocks]
        blocks = tuple((k.unflatten(0, audio.shape[:2]), v.unflatten(0, audio.shape[:2])) for k, v in seen)
        return Remembered(blocks, None if self.audio_shift is None else self.audio_shift(audio))

    @torch.no_grad()
    def remember_text(self, text: Tensor) -> Remembered | None:
        """(B,words,text_dim) features likewise; None where the model reads no text."""
        if self.text_embedding is None:
            return None
        words = self.text_embedding(text)
        attentions = [cast(DubbingBlock, block).cross_attn for block in self.blocks]
        return Remembered(tuple(each.keys_values(words) for each in attentions if each is not None))

    @torch.no_grad()
    def remember_reference(self, reference: Tensor, place: tuple[int, int, int, int] | None = None) -> Remembered:
        """(B,C,Fr,h,w) clean reference latents likewise; needs `reference_attention` "own".

        Its tokens see neither the target nor its time, so that they go through the blocks once a window.
        """
        if self.config["reference_attention"] != "own":
            raise InputError(
                f"a transformer with reference_attention '{self.config['reference_attention']}'",
                "its reference tokens look at the noisy target: only with 'own' can they be remembered",
            )
        x = self._embed(reference, self.patch_embedding.weight[:, self.config["context_channels"] :])
        _, _, frames, height, width = reference.shape
        rotary, learned = self._tables(frames, height, width, place, beside=True)
        x = x if learned is None else x + learned
        _, time = self._time(reference.new_zeros(x.shape[:2]), None)
        split = self._split(x)
        if split is not None:
            x, rotary = split.part(x, 2), split.table(rotary)
        seen = []
        for block in self.blocks:
            seen.append(cast(DubbingBlock, block).reference_keys(x, time, rotary, split))
            if block is not self.blocks[-1]:
                x = block(x, time, rotary, None, None, 0, split=split)
        return Remembered(tuple(seen))

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor,
        reference: Tensor | Remembered | None,
        audio: Tensor | Remembered | None,
        text: Tensor | Remembered | None = None,
        place: tuple[int, int, int, int] | None = None,
        steps: StepReuse | None = None,
    ) -> Tensor:
        """The raw prediction: velocity or clean latents, as the model was trained.

        Args:
            latents: (B,context+C,F,h,w) noisy target, after the generator's masked video if there is one.
            timestep: (B,F) in [0,1] per latent frame of the target; 0 for clean motion frames.
            reference: (B,C,Fr,h,w) clean reference latents; Fr = F for an editor, 1 for the generator's frame; None
                leaves reference tokens out (what Wan2.2 itself is, with no audio).
            audio: (B,F,window,audio_dim) features; zeros for unconditional; None leaves audio attention out.
            text: (B,words,text_dim) or None. Each of these three may come remembered.
            place: (top, left, rows, columns): where the latents lie in a larger grid of cells, and its size; None if
                they are the whole.
            steps: What earlier steps of this run may spare the blocks; None runs them.

        Returns:
            (B,C,F,h,w).
        """
        batch, _, frames, height, width = latents.shape
        if steps is not None and isinstance(audio, Tensor):
            audio = self.remember_sound(audio)  # which can be taken by the sample
        if not self.config["reference_tokens"]:
            reference = None
        context = self.config["context_channels"]
        doubt = None
        if self.config["precondition"]:
            gain = linear_gain(timestep, self.config["precondition"])[:, None, :, None, None]
            doubt = 1 - gain * (1 - timestep)[:, None, :, None, None]
            latents = torch.cat([latents[:, :context], latents[:, context:] * gain], dim=1)
        weight = self.patch_embedding.weight
        x = self._embed(latents, weight)
        rotary, learned = self._tables(frames, height, width, place, beside=False)
        beside = 0
        if isinstance(reference, Tensor):
            beside = reference.shape[2]
            x = torch.cat([self._embed(reference, weight[:, context:]), x], dim=1)
            shifted, _ = self._tables(beside, height, width, place, beside=True)
            rotary = (torch.cat([shifted[0], rotary[0]]), torch.cat([shifted[1], rotary[1]]))
        if learned is not None:
            x = x + learned

        heard = None
        if self.audio_shift is not None and audio is not None:
            heard = audio.shift if isinstance(audio, Remembered) else self.audio_shift(audio)
            assert heard is not None
            heard = torch.cat([heard.new_zeros(batch, beside, heard.shape[-1]), heard], dim=1)
        times = torch.cat([timestep.new_zeros(batch, beside), timestep], dim=1)
        embedded, time = self._time(times, heard)
        if isinstance(audio, Tensor):
            audio = self.audio_embedding(audio.flatten(0, 1))
        if isinstance(text, Tensor):
            text = None if self.text_embedding is None else self.text_embedding(text)
        known = reference if isinstance(reference, Remembered) else None

        def run(rows: Tensor | None) -> Tensor:
            """The target's tokens after all blocks, of some samples or of all."""
            tokens, times = of_samples(rows, x), of_samples(rows, time)
            sound, words, seen = of_samples(rows, audio), of_samples(rows, text), of_samples(rows, known)
            return self._run(tokens, times, sound, words, seen, rotary, beside)

        if steps is None:
            x = run(None)
        else:
            shift, scale = cast(DubbingBlock, self.blocks[0]).modulations(time[:, beside:])[:2]
            agree = self.member.leaders if self.member.size > 1 else None
            x = steps.add(modulate(x[:, beside:], shift, scale), x[:, beside:], run, agree)
        embedded = embedded[:, beside:]
        output = self._unpatch(self.head(x, embedded), height, width)
        if self.config["residual"] and context:
            start = latents[:, :context]
            output = output + (start if doubt is None else latents[:, context:] + doubt * start)
        if self.refiner is not None:
            output = output + self.refiner(latents, output, embedded)
        return output

    def _run(
        self,
        x: Tensor,
        time: Tensor,
        audio: Tensor | Remembered | None,
        text: Tensor | Remembered | None,
        reference: Remembered | None,
        rotary: tuple[Tensor, Tensor],
        beside: int,
    ) -> Tensor:
        """All blocks; (B,beside+F,tokens,dim) -> (B,F,tokens,dim). Sound is (B*F,window,dim) or remembered."""
        split = self._split(x)
        if split is not None:
            x, rotary = split.part(x, 2), split.table(rotary)
        for index, block in enumerate(self.blocks):
            sound, words, seen = (seen_by(index, each) for each in (audio, text, reference))
            if isinstance(sound, tuple):  # a frame's tokens hear that frame's sound
                sound = (sound[0].flatten(0, 1), sound[1].flatten(0, 1))
            last = block is self.blocks[-1]
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                x = self._gradient_checkpointing_func(block, x, time, rotary, sound, words, beside, seen, None, last)
            else:
                x = block(x, time, rotary, sound, words, beside, seen, split, last)
        return x if split is None else split.whole(x)


def linear_gain(t: Tensor, noise: float) -> Tensor:
    """What noisy latents z_t = (1-t) z0 + t eps are multiplied by to estimate z0 of unit variance with least error.

    Where z0 is expected at m, not at 0, the same gain g gives the best estimate m + g (z_t - (1-t) m).

    Args:
        t: Times.
        noise: Standard deviation of eps.
    """
    return (1 - t) / ((1 - t).square() + (noise * t).square())


def generator_to_editor(generator: DubbingTransformer, companion: CompanionInput = "both") -> DubbingTransformer:
    """An editor with the generator's weights.

    Its extra input channels (the masked video) are sliced away, as in the paper. With `residual` they stay, and the
    companion comes through them too, unless it is to come as tokens alone.

    Args:
        generator: The trained generator.
        companion: What the companion comes through.

    Raises:
        InputError: It is to come through channels alone, of which none stay.
    """
    config = dict(generator.config)
    stays = config["residual"] and companion != "tokens"
    if companion == "channels" and not (stays and config["context_channels"]):
        raise InputError("an editor whose companion comes through channels alone", "only a residual one has channels")
    context = 0 if stays else config["context_channels"]
    fields = {name: config[name] for name in TransformerConfig.model_fields}
    changed = {"context_channels": config["context_channels"] - context, "reference_tokens": config["reference_tokens"]}
    if companion == "channels":
        changed["reference_tokens"] = False
    editor = DubbingTransformer(**{**fields, **changed})
    state = dict(generator.state_dict())
    for name in READS_CONTEXT & state.keys():
        state[name] = state[name][:, context:]
    editor.load_state_dict(state)
    return editor
