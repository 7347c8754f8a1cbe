"""Every number of the recipe, typed and described, in one place.

The platform's settings (``xdub_platform.settings``) compose these models into profiles; a worker
receives one of them as JSON. Defaults are the ``embedded`` scale. Where a default departs from the
X-Dub paper (arXiv 2512.25066) the field's ``json_schema_extra["deviation"]`` says from what, why
and, where somebody measured it, what that does to the scores; the report lists those that a run has.
"""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Prediction = Literal["x", "v"]
Variant = Literal["generated", "relit", "rendered"]
ContextFill = Literal["grey", "reference"]
Sharding = Literal["replicated", "sharded"]
ReferenceAttention = Literal["full", "own"]
CompanionInput = Literal["both", "channels", "tokens"]
Stitching = Literal["pixels", "latents"]


def deviation(
    paper: str, why: str, effect: str | None = None, own: tuple[Any, ...] | dict[str, Any] = ()
) -> dict[str, Any]:
    """Marks a field as a stated departure from the paper.

    Args:
        paper: What the paper does.
        why: Why the default is another.
        effect: What it does to the scores, as measured; None where nobody measured it.
        own: Values that are the paper's, or its value by phase: a run that has them does not depart.
    """
    return {"deviation": {"paper": paper, "why": why, "effect": effect, "own": own}}


class Config(BaseModel):
    """Base of all configuration: unknown keys are errors, values are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class MediaConfig(Config):
    """What footage is normalised to."""

    fps: int = Field(25, description="Frames per second of every clip and output.")
    sample_rate: int = Field(16_000, description="Samples per second of every clip's sound.")
    crop_size: int = Field(
        96,
        description="Side of the square face crop in pixels.",
        json_schema_extra=deviation("512", "two CPU cores: 512 px has 28 times the tokens", own=(512,)),
    )
    crop_scale: float = Field(
        1.15,
        description="Crop side over the longer side of the face's box.",
        json_schema_extra=deviation(
            "1.45 (release)", "at 96 px the lips need the pixels that the margin would take", own=(1.45,)
        ),
    )
    max_seconds: float = Field(600.0, description="Longest footage taken in, in seconds.")
    max_side: int = Field(4096, description="Largest frame side taken in, in pixels.")
    min_clip_frames: int = Field(25, ge=1, description="Shots shorter than this are dropped.")
    max_clip_frames: int = Field(250, description="Shots longer than this become several clips, of even length.")

    @model_validator(mode="after")
    def parts_are_long_enough(self) -> Self:
        """Half of a shot that is just too long is a clip."""
        if self.max_clip_frames < 2 * self.min_clip_frames:
            raise ValueError(
                f"max_clip_frames {self.max_clip_frames} is less than twice min_clip_frames {self.min_clip_frames}: "
                "raise one or lower the other"
            )
        return self


class DubbingConfig(Config):
    """How a dubber goes through a video that is longer than its window."""

    stitching: Stitching = Field(
        "pixels",
        description="pixels: each window's new frames follow the frames before; latents: as in the release, windows' "
        "latents are joined and decoded as one, and motion frames are colour-corrected.",
    )


class CorpusConfig(Config):
    """The procedural corpus that stands for a user's footage in the demo."""

    seed: int = 7
    training_heads: int = 32
    heldout_heads: int = 8
    clips_per_head: int = 3
    seconds: tuple[float, float] = Field((3.0, 4.0), description="Shortest and longest clip, in seconds.")
    frame_size: int = Field(192, description="Side of the square raw frame in pixels.")
    languages: tuple[str, ...] = ("en", "es", "fr", "de", "it", "ru", "el", "zh", "yue", "ja")


class TransformerConfig(Config):
    """Shape of the `DubbingTransformer`; names follow the released checkpoint."""

    dim: int = 192
    num_layers: int = 3
    num_heads: int = 6
    ffn_dim: int = 768
    freq_dim: int = 128
    in_channels: int = 160
    context_channels: int = Field(
        0, description="Extra input channels: what is known of the target's own frames (the masked video)."
    )
    out_channels: int = 160
    patch_size: tuple[int, int, int] = (1, 2, 2)
    text_dim: int | None = Field(
        None,
        description="Width of the text features; None leaves the text cross-attention out.",
        json_schema_extra=deviation(
            "UMT5, coarse captions, dropout 0.7", "one prompt serves all procedural heads", own=(4096,)
        ),
    )
    audio_dim: int = Field(64, description="Width of the audio features.")
    audio_window: int = Field(16, description="50 Hz audio features that one latent frame sees (paper: n=16).")
    audio_inner_dim: int = 96
    audio_heads: int = 4
    audio_layers: int = 2
    positions: int = Field(
        6,
        description="Side of a learned table of places in the crop, added to every token; 0 leaves it out.",
        json_schema_extra=deviation(
            "none", "masked cells look alike: finding out where they lie takes long training", own=(0,)
        ),
    )
    audio_modulation: bool = Field(
        True,
        description="Each latent frame's window of sound also shifts its modulation.",
        json_schema_extra=deviation(
            "audio cross-attention alone", "that took off after thousands of steps", own=(False,)
        ),
    )
    residual: bool = Field(
        True,
        description="Prediction = what is known of the same frames (masked video, companion), corrected by the noisy "
        "latents as far as their noise lets one trust them, + head output; x only. "
        "The editor keeps the generator's context channels: its companion comes through them and as tokens.",
        json_schema_extra=deviation(
            "the head's output; companion as tokens alone",
            "a tiny model takes thousands of steps to learn to copy",
            own=(False,),
        ),
    )
    reference_tokens: bool = Field(
        True, description="False: the reference makes no tokens; an editor then sees its companion in channels alone."
    )
    context_fill: ContextFill = Field(
        "reference",
        description="What the generator's masked video holds where the face is masked: grey, or the reference frame's "
        "face, brought there by an affine map of landmarks that speech hardly moves.",
        json_schema_extra=deviation(
            "grey", "finding the face in the reference frame's tokens takes long training", own=("grey",)
        ),
    )
    refiner_width: int = 128
    refiner_layers: int = Field(
        5,
        description="Residual 3x3 convolutions over input and output at latent resolution; 0 leaves them out.",
        json_schema_extra=deviation(
            "none",
            "attention over patches of 16 px learns slowly where edges lie",
            "one-step lip error at t = 1, editing: 750 steps of convolutions alone 49.7, 8500 of the transformer 47.2",
            own=(0,),
        ),
    )
    precondition: float = Field(
        0.1,
        ge=0,
        description="Noisy latents enter as the best linear estimate of clean ones, (1-t) z / ((1-t)^2 + (s t)^2), for "
        "noise of this standard deviation s (`flow.noise_scale`); 0: as they are.",
        json_schema_extra=deviation(
            "z as it is",
            "a tiny model spends its width on telling noise from signal; at t = 1 it now sees no noise at all, and "
            "later steps keep what the first one knew",
            "one-step lip error at t = 1, editing, 100 steps from the same weights: 33.7 with, 38.2 without",
            own=(0.0,),
        ),
    )
    spatial_attention: bool = Field(
        False,
        description="In every block the tokens of each frame first look at one another (the paper's 2D attention).",
        json_schema_extra=deviation(
            "2D spatial, then 3D attention", "two CPU cores; the release has the 3D one alone", own=(True,)
        ),
    )
    reference_attention: ReferenceAttention = Field(
        "full",
        description="full: reference tokens look at all tokens, the noisy target's too; own: at one another only, so "
        "that sampling computes their keys and values once a window.",
    )


BASE = "base"
"""In `BackbonesConfig`: what is shipped or made by the chain, in place of a published network."""


class BackbonesConfig(Config):
    """Which frozen networks a profile uses: the shipped ones, or published ones from a local folder or a hub id."""

    codec: str = Field(BASE, description="Latent codec: base, or a Wan folder in diffusers' form (or its `vae`).")
    audio: tuple[str, ...] = Field(
        (BASE,),
        min_length=1,
        description="Audio encoders, whose features are concatenated in this order: base, Whisper, wav2vec2.",
        json_schema_extra=deviation(
            "Whisper (release: Whisper large-v2 and wav2vec2-base-960h)",
            "two CPU cores; the base's needs no download",
            own=(("openai/whisper-large-v2",), ("openai/whisper-large-v2", "facebook/wav2vec2-base-960h")),
        ),
    )
    text: str | None = Field(
        None, description="UMT5 and its tokenizer: a Wan folder in diffusers' form; None: no text (`text_dim` None)."
    )
    prompt: str = Field("", description="The one text of training and dubbing; the paper's is empty at inference.")
    negative_prompt: str | None = Field(
        None,
        description="Text of the branch without reference and sound; None: the prompt, as in the release's own run "
        "(one text for all branches). The paper has a standard negative prompt, which it does not print.",
    )
    identity: str = Field(
        BASE, description="The texture phase's identity loss: base, the chain's own encoder; or a folder with ArcFace."
    )
    perceptual: str = Field(
        BASE, description="The texture phase's perceptual loss: base, the shipped stand-in; or a folder with CLIP."
    )

    @property
    def made_for_the_prior(self) -> bool:
        """Whether latents and features are those that the shipped prior knows."""
        return self.codec == BASE and self.audio == (BASE,)

    @property
    def texts(self) -> dict[str, str | None]:
        """Prompt and negative prompt; without a text encoder there are none."""
        if self.text is None:
            return {"prompt": None, "negative_prompt": None}
        return {"prompt": self.prompt, "negative_prompt": self.negative_prompt}


class FlowConfig(Config):
    """Flow matching: timestep distribution, parameterisation, sampling."""

    prediction: Prediction = Field(
        "x",
        description="What the network's last layer means; losses and windows stay in v and t.",
        json_schema_extra=deviation(
            "v", "token width exceeds a tiny model's width; v-prediction then learns far slower", own=("v",)
        ),
    )
    velocity_weight_max: float = Field(
        4.0,
        description="x-prediction: an error of z0 weighs 1/t^2 in v; this caps it, or small t would drown all others.",
    )
    sampling_steps: int = Field(
        5,
        json_schema_extra=deviation(
            "50",
            "two CPU cores; and a weak model's first step says nearly all that it knows",
            "base as editor, 12 held-out heads: 7 steps at shift 1 opening 0.61, leak 0.36, lips +2.3 dB; 5 at 0.6 "
            "0.63, 0.35, +2.4 dB; one 0.62, 0.37, +2.4 dB",
            own=(50,),
        ),
    )
    sampling_shift: float = Field(
        0.6,
        json_schema_extra=deviation(
            "unstated; release 5.0",
            "of 5 steps it gives each expert two; any more leaves the texture expert fewer",
            own=(5.0,),
        ),
    )
    noise_scale: float = Field(
        0.1,
        gt=0,
        le=1,
        description="Standard deviation of the noise eps, in training and in sampling.",
        json_schema_extra=deviation(
            "1",
            "a weak model's first estimate has a soft mouth; through strong noise its later steps cannot tell it from "
            "a true one, and take the companion's",
            "base as editor, 12 held-out heads, five steps against the first alone: with 1 opening 0.58 against 0.65, "
            "leak 0.50 against 0.25 (guided by 2); with 0.1 and 6150 more training steps opening 0.63 against 0.62, "
            "leak 0.35 against 0.37, lips +2.4 dB both (guided by 1.5)",
            own=(1.0,),
        ),
    )
    temperature: float = Field(
        0.1,
        gt=0,
        le=1,
        description="What sampling multiplies its noise by.",
        json_schema_extra=deviation(
            "1",
            "a weak model takes some of the noise for texture: the whole face turns grainy",
            "four of the demo's clips, 1, 0.3 and 0.03: outside the face 36.4, 38.3 and 38.5 dB, lips +2.56, +2.61 and "
            "+2.61 dB",
            own=(1.0,),
        ),
    )
    reference_guidance: float = Field(
        1.0,
        json_schema_extra=deviation(
            "2.5 (release)", "x-prediction at this scale needs none; set by measurement", own=(2.5,)
        ),
    )
    audio_guidance: float = Field(
        1.5,
        json_schema_extra=deviation(
            "10 s^1.5 (release)",
            "set by measurement on the base",
            "base as editor, 12 fresh heads: 1, 1.25 and 1.5 give opening 0.78, 0.80 and 0.81, width 0.43, 0.48 and "
            "0.53, leak 0.25, 0.21 and 0.18, lips +3.20, +3.18 and +3.01 dB",
            own=(10.0,),
        ),
    )
    guidance_from: float = Field(
        0.9,
        description="Times below are not guided: the mouth stands by then, and a guided step costs twice.",
        json_schema_extra=deviation("every step", "two CPU cores", own=(0.0,)),
    )
    guidance_schedule: Literal["above", "release"] = Field(
        "above",
        description="above: both scales as they stand for times from guidance_from on, none below; release: they are "
        "the initial values of the release's schedules, and guidance_from is not used.",
    )
    border: bool = Field(
        False, description="Outermost latent cells come from the reference at every step (release); editors only."
    )
    start_from: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Steps of the schedule above this time are skipped; below 1 sampling starts from the noised "
        "reference, so it is for editors (paper: about 10 of 50 steps fewer).",
    )
    companion_share: float = Field(
        0.3,
        ge=0,
        le=1,
        description="Editors with context channels: how much of the first step's estimate sees the companion's mouth. "
        "The rest is made by the same model with the face masked, as a generator sees it, which takes landmarks. Less "
        "lets less of the old mouth through. Other models see their companion at every step.",
        json_schema_extra=deviation(
            "1: editing is free of masks",
            "the first step decides what stays of the old mouth, and a weak model takes too much of it",
            "the demo's editor, its eight clips, 1, 0.5, 0.4 and 0.3: leak 0.33, 0.24, 0.21 and 0.17, opening 0.80, "
            "0.81, 0.80 and 0.79, lips +3.1, +3.1, +3.0 and +2.8 dB; 0.3 with audio guidance 1.5 instead of 1.25: "
            "leak 0.15, opening 0.80, lips +2.5 dB",
            own=(1.0,),
        ),
    )
    remember: bool = Field(
        False,
        description="Sampling computes once a window what steps and guidance branches share: keys and values of sound "
        "and text, and, where reference tokens look at one another only, of the reference.",
    )
    step_reuse: float = Field(
        0.0,
        ge=0,
        description="A step takes the blocks' last addition again while their input has changed, relatively and summed "
        "up since, by less (TeaCache); 0 runs them at every step. Brings `remember` with it.",
    )
    lip_window: tuple[float, float] = Field((0.4, 0.8), description="t in which the lip expert acts.")
    texture_window: tuple[float, float] = Field((0.0, 0.3), description="t in which the texture expert acts.")

    @property
    def for_generator(self) -> FlowConfig:
        """Without what takes a reference of the target's own frames: of these a generator has one at most."""
        return self.model_copy(update={"border": False, "start_from": 1.0})

    @property
    def sampling_noise(self) -> float:
        """Standard deviation of the noise that sampling starts from."""
        return self.temperature * self.noise_scale


PhaseName = Literal["base", "generator", "editor", "lip", "texture"]


class LoraConfig(Config):
    """PEFT adapter of an expert; rank and targets are open in the paper."""

    rank: int = 16
    alpha: int = 16
    targets: tuple[str, ...] = ("q", "k", "v", "o", "ffn.0", "ffn.2")


class WindowConfig(Config):
    """The window of the phase that a model was trained in."""

    clip_frames: int = 25
    motion_frames: int = 5


class PhaseConfig(Config):
    """One training phase of the transformer."""

    phase: PhaseName
    seed: int = 0
    steps: int = Field(
        200,
        json_schema_extra=deviation(
            "15,000; editor 4,000; experts 1,000",
            "two CPU cores",
            own={"generator": 15_000, "editor": 4_000, "lip": 1_000, "texture": 1_000},
        ),
    )
    batch_size: int = Field(
        8,
        json_schema_extra=deviation(
            "256; experts 64", "two CPU cores", own={"generator": 256, "editor": 256, "lip": 64, "texture": 64}
        ),
    )
    learning_rate: float = Field(
        5e-4,
        json_schema_extra=deviation(
            "1e-5; experts 5e-6",
            "tens of steps: generator 1e-4, editor 5e-5, lip expert 1e-2, texture expert 3e-3",
            "editor without experts, 12 fresh heads, at 2e-4, 1e-4 and 5e-5: width 0.44, 0.47 and 0.50, pucker 0.59, "
            "0.61 and 0.63, leak 0.11, 0.10 and 0.10, opening 0.80, lips +2.8 dB; the base 0.52, 0.63, 0.08, 0.79. "
            "lip expert on the demo's editor: 12 steps at 2e-4 change nothing; at 1e-2 30 steps give opening 0.80 to "
            "0.81, lips +0.08 dB, 60 steps 0.82, width 0.54 to 0.57, leak 0.34 to 0.31, lips +0.05 dB. Texture expert, "
            "on top of it: 12 steps at 3e-3 lips +0.13 dB, perceptual distance -3 %, leak +0.05; at 1e-2 +0.22 dB and "
            "+0.10",
            own={"generator": 1e-5, "editor": 1e-5, "lip": 5e-6, "texture": 5e-6},
        ),
    )
    warmup_steps: int = 20
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    ema_decay: float = 0.99
    schedule: Literal["constant", "cosine"] = Field(
        "cosine", description="Learning rate after the warm-up; cosine ends at a tenth."
    )
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="bf16: forward pass under autocast; weights and moments stay fp32."
    )
    accumulate: int = Field(
        1,
        ge=1,
        description="Passes that make one update, each over its share of the batch: the same update, less memory.",
    )
    gradient_checkpointing: bool = Field(
        False,
        description="Blocks keep their input alone and are computed again for the backward pass: the same update, less "
        "memory, a third more computing.",
    )
    companion: CompanionInput = Field(
        "both",
        description="Editor: how it gets its companion: as reference tokens, through the generator's context channels, "
        "or both.",
    )
    inpaints: bool = Field(
        False, description="Experts: trained on clips with the generator's task (the paper's generator*)."
    )
    token_context: float = Field(
        0.35, description="Base: share of steps that edit a companion, as the editor will; the others fill a mask."
    )
    clip_frames: int = Field(
        25,
        json_schema_extra=deviation(
            "77 (editor)",
            "two CPU cores; 25 is the paper's generator length",
            own={"generator": 25, "editor": 77, "lip": 77, "texture": 77},
        ),
    )
    cells: int | None = Field(
        None,
        description="Side in latent cells of the spatial windows that are trained on, laid over the lower face.",
        json_schema_extra=deviation(
            "whole crops", "half of the tokens, all of the mouth: more steps in the same time", own=(None,)
        ),
    )
    short_frames: int = Field(13, description="Pixel frames of a window where `cells` is set.")
    whole_from: float = Field(
        1.0, description="Share of the steps after which windows are whole crops of `clip_frames` frames."
    )
    pixel_weighting: bool = Field(
        True,
        description="Weigh an error in a latent channel by what it is worth in pixels.",
        json_schema_extra=deviation(
            "every channel alike", "principal components: the first 16 of 160 hold 95 %", own=(False,)
        ),
    )
    motion_frames: int = Field(5, description="Clean pixel frames at a window's start; 5 frames are 2 latent frames.")
    motion_drop: float = Field(0.5, description="Probability of training without motion frames.")
    audio_drop: float = Field(0.1, description="Probability of zeroed audio features, for guidance.")
    own_estimates: float = Field(
        0.0,
        description="Share of samples that are noised from the model's own estimate: of its first step, or of all "
        "steps before an expert's window; prediction x.",
        json_schema_extra=deviation(
            "0",
            "0.5 for the base, 1 for editor and experts: a weak model's first estimate has a soft mouth, which is what "
            "its later steps have to improve; true ones, a little noised, leave nothing to learn",
            "base, 750 steps on, five unguided steps on 10 held-out heads: opening 0.38 to 0.42, lips +1.8 to +2.0 dB. "
            "Texture expert, 30 steps on the demo's editor: from three steps' estimates lips +0.3 dB, perceptual "
            "distance -5 %, leak +0.12; from the first one's lips -0.05 dB, perceptual distance +1 %, leak -0.02",
            own=(0.0,),
        ),
    )
    reference_drop: float = Field(0.0, description="Probability of a zeroed reference, for guidance.")
    uniform_times: bool = Field(
        False,
        description="Times uniform before the shift, not logit-normal.",
        json_schema_extra=deviation(
            "logit-normal", "the generator's are uniform: few steps visit both ends", own=(False,)
        ),
    )
    shift: float = Field(
        5.0,
        description="Timestep shift a: t' = a t / (1 + (a-1) t).",
        json_schema_extra=deviation(
            "5.0; lip expert 1.5, texture expert 0.2",
            "the generator's is 2: its times are uniform before it",
            own={"generator": 5.0, "editor": 5.0, "lip": 1.5, "texture": 0.2},
        ),
    )
    face_weight: float = Field(1.0, json_schema_extra=deviation("0.3", "hundreds of steps, not thousands", own=(0.3,)))
    lip_weight: float = Field(
        3.0, json_schema_extra=deviation("0.3", "lips are a few per cent of a 96 px crop", own=(0.3,))
    )
    sync_weight: float = 0.0
    identity_weight: float = 0.0
    perceptual_weight: float = 0.0
    pixel_t_max: float = Field(0.6, description="Clip of t in the decoded estimate of the pixel losses.")
    pixel_latent_frames: int = Field(4, description="Latent frames decoded for the pixel losses (13 frames).")
    silence_probability: float = Field(0.0, description="Texture phase: audio switched off; texture losses only there.")
    judged_every: int = Field(
        3,
        description="Texture phase: every so many decoded frames one is shown to its critics, from the last back.",
        json_schema_extra=deviation("1", "frames 0.12 s apart say the same; judging all 13 triples the step", own=(1,)),
    )
    lora: LoraConfig | None = None
    checkpoint_every: int = 100
    keep_checkpoints: int = Field(2, ge=1, description="The last so many sound checkpoints stay.")
    skips_before_rollback: int = Field(
        10, ge=1, description="Updates skipped in a row (not finite, or a spike) that send a run back to a checkpoint."
    )
    max_rollbacks: int = Field(3, ge=0, description="Times that a run goes back, each time on with other data.")
    validate_every: int = Field(0, ge=0, description="Steps between two looks at clips held out of training; 0: none.")
    validation_share: float = Field(
        0.05,
        gt=0,
        lt=1,
        description="Share of the clips that are held out where `validate_every` is set; at least one.",
    )

    @property
    def window(self) -> WindowConfig:
        """In which the trained model is to sample."""
        return WindowConfig(clip_frames=self.clip_frames, motion_frames=self.motion_frames)

    @property
    def on_clips(self) -> bool:
        """Whether the phase learns from clips; the others learn from pairs."""
        return self.inpaints or self.phase in ("base", "generator")


class FilterConfig(Config):
    """What a companion pair must satisfy; calibrated on graded bad pairs."""

    identity_cosine: float = Field(
        0.85,
        json_schema_extra=deviation("0.85 (ArcFace)", "our own encoder: calibrated against the nearest other identity"),
    )
    mouth_distance: float = Field(1.0, description="Mean lip landmark distance in the 112 px ArcFace template.")
    aspect_mean: float = Field(4.0, description="Mean of six quality aspects on a 1-5 scale.")


class PairsConfig(Config):
    """How companion pairs are made."""

    seed: int = 0
    sampling_steps: int = Field(
        2,
        json_schema_extra=deviation(
            "not told",
            "two CPU cores; and a weak model's later steps make it worse",
            "generator, 10 held-out heads: 2 steps opening 0.45, lips +2.0 dB; 4 steps 0.44, +1.8 dB",
        ),
    )
    audio_guidance: float = Field(
        1.0, description="1 halves the work; the paper wants lip variation, not accuracy, here."
    )
    batch_size: int = 16
    pairs_per_clip: int = 1
    clip_fraction: float = Field(0.5, description="Share of a shard's clips that get a generated companion.")
    relit_fraction: float = Field(0.05, description="Share of a shard's clips that get a relit pair.")
    rendered_per_shard: int = Field(16, description="Exact pairs of other, rendered heads per shard.")
    rendered_seconds: float = 3.0
    filters: FilterConfig = FilterConfig()


class BenchmarkConfig(Config):
    """Held-out scores against the renderer's exact reference dub."""

    seed: int = 0
    heads_seed: int | None = Field(None, description="None: the corpus's held-out heads; else freshly drawn ones.")
    cases: int = Field(8, ge=1)
    seconds: float = 3.0
    silent_frames: int = Field(25, description="First frames of each case that are also dubbed with silent audio.")


class PretrainConfig(Config):
    """The shipped base: its footage and the budget of each network, in steps."""

    seed: int = 0
    heads: int = 1200
    heldout_heads: int = Field(
        24,
        ge=1,
        description="The last heads of the footage: codec, landmarker, perceptual encoder and prior learn nothing of "
        "them; their cards' scores are measured on them.",
    )
    seconds: float = 3.1
    frame_size: int = 192
    crop_size: int = 96
    processes: int = 2
    codec_steps: int = 300
    landmarker_steps: int = 1500
    perceptual_steps: int = 300
    audio_encoder_steps: int = 4000
    mouth_reader_steps: int = 800
    identity_judge_steps: int = 700
    prior: PhaseConfig = PhaseConfig(
        phase="base",
        steps=4500,
        batch_size=16,
        lip_weight=6.0,
        learning_rate=5e-4,
        warmup_steps=100,
        token_context=0.75,
        own_estimates=0.5,
        cells=8,
        whole_from=0.95,
        uniform_times=True,
        shift=8.0,
        ema_decay=0.998,
        checkpoint_every=250,
    )
