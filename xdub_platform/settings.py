"""Everything a run can be told: profiles, numbers, places.

`load_settings` resolves, in rising priority, the model defaults, the profile and ``XDUB_*`` environment
variables (nested with a double underscore: ``XDUB_PHASES__EDITOR__STEPS=50``). Budgets count steps, never
seconds, so that results repeat.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, Field, StringConstraints, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from model_code.backbones.presets import PRESETS
from model_code.config import (
    BackbonesConfig,
    BenchmarkConfig,
    Config,
    CorpusConfig,
    DubbingConfig,
    FlowConfig,
    LoraConfig,
    MediaConfig,
    PairsConfig,
    PhaseConfig,
    Sharding,
    TransformerConfig,
    Variant,
)
from model_code.errors import InputError

Profile = Literal["embedded", "embedded-full", "workstation", "cluster"]


def _with_driver(address: str) -> str:
    """A Postgres address names the driver that is installed: which one SQLAlchemy takes is its version's choice."""
    return re.sub(r"^postgres(ql)?(\+\w+)?://", "postgresql+psycopg2://", address)


DatabaseAddress = Annotated[str, AfterValidator(_with_driver)]


class StoreSettings(Config):
    """Where finished bytes are kept beside the state root."""

    url: str | None = Field(
        None, description="DVC remote: a folder or s3://bucket/prefix; None keeps the local cache only."
    )
    s3_endpoint: str | None = Field(None, description="Endpoint of an S3-compatible server; None means AWS.")


class DatabaseSettings(Config):
    """Dagster's database; MLflow's is its own `tracking_uri` (their migration tables would collide)."""

    url: DatabaseAddress | None = Field(
        None, description="postgresql://user:password@host/name; None means sqlite files in the state root."
    )


class MlflowSettings(Config):
    """Experiment tracking and the model registry."""

    tracking_uri: DatabaseAddress | None = Field(
        None, description="MLflow server or a database of its own; None means sqlite in the state root."
    )
    experiment: str = Field("xdub", description="Experiment that all runs belong to.")
    model_name: str = Field("xdub-dubber", description="Registered model that serving follows.")


TrainedAsset = Literal["generator", "editor", "lip_expert", "texture_expert"]
"""Assets that are the transformer's training."""


class ProcessSettings(Config):
    """How workers are started."""

    threads: int = Field(1, ge=1, description="OMP threads of a worker that others run beside.")
    training_threads: int = Field(
        2, ge=1, description="OMP threads of what runs alone (editor, scoring) or trains in several processes; shared."
    )
    training_processes: int = Field(
        1, ge=1, description="Processes that train one model together; on cuda each takes an accelerator of its own."
    )
    trained_together: tuple[TrainedAsset, ...] = Field(
        ("generator", "editor"),
        description="Assets whose model `training_processes` processes train together; the others take one process, "
        "since the experts run beside each other.",
    )
    sharding: Sharding = Field(
        "replicated", description="replicated: each has the weights (DDP); sharded: only its part of them (FSDP)."
    )
    sampling_processes: int = Field(
        1,
        ge=1,
        description="Processes that sample each window of `xdub dub` and `xdub serve` together, each with its part of "
        "every frame's tokens (a divisor of the transformer's heads); on cuda each takes an accelerator of its own.",
    )
    parallel_runs: int = Field(2, ge=1, description="Independent runs the planner keeps going at once.")
    device: Literal["cpu", "cuda"] = Field("cpu", description="Device of training and sampling.")
    launcher: Literal["local", "kubernetes"] = Field(
        "local", description="Where a run's steps go: processes beside it, or pods of a cluster (`kubernetes`)."
    )


GPUS = {
    "syncnet": 1,
    "identity_encoder": 1,
    "generator": 1,
    "companion_pairs": 1,
    "editor": 1,
    "lip_expert": 1,
    "texture_expert": 1,
    "benchmark_scores": 1,
}
LARGE = ("clips", *GPUS, "dubber")
"""They train, sample, or hold a whole shot or model in memory."""


class KubernetesSettings(Config):
    """Pods of the steps; read where `processes.launcher` is kubernetes."""

    worker_image: str | None = Field(
        None, description="Image of the steps' pods; None means that of the code location, which then needs torch."
    )
    webserver: str = Field(
        "http://dagster-dagster-webserver:3000", pattern=r"^https?://", description="Where the planner submits runs."
    )
    gpu_resource: str = Field("nvidia.com/gpu", description="Name under which nodes offer their accelerators.")
    gpus: dict[str, int] = Field(
        GPUS,
        description="Accelerators of the pod that makes an asset; 0 takes a default away.",
    )
    large: tuple[str, ...] = Field(
        LARGE, description="Assets whose pods ask for `cpu` and `memory`, as those with accelerators do."
    )
    cpu: str = Field("4", description="CPUs that the pod of a large asset asks for.")
    memory: str = Field("32Gi", description="Memory that it asks for and may not exceed.")
    small_cpu: str = Field(
        "1", description="CPUs that any other step's pod asks for, such as the planner's, which waits."
    )
    small_memory: str = Field("8Gi", description="Memory that it asks for and may not exceed.")
    max_seconds: int = Field(7 * 24 * 3600, ge=60, description="Longest life of a step's pod, waiting included.")
    patience_seconds: float = Field(
        600.0, ge=0, description="How long the planner asks again while database or webserver do not answer."
    )


class ServingSettings(Config):
    """`xdub serve`: queue, limits, keys, retention."""

    require_keys: bool = Field(
        True, description="False takes jobs without a key: only in the embedded profile and on 127.0.0.1."
    )
    keys_file: Path | None = Field(None, description="Hashed API keys; None means serving/keys.json in the state root.")
    inputs: Path | None = Field(
        None, description="Folder whose files a job may name; None means serving/inputs in the state root."
    )
    devices: tuple[str, ...] = Field((), description="One worker each, such as cuda:0; empty: `processes.device`.")
    queue_limit: int = Field(50, ge=1, description="Jobs of all keys that arrive, wait or run at once.")
    queue_limit_per_key: int = Field(20, ge=1, description="Jobs of one key that arrive, wait or run at once.")
    max_upload_bytes: int = Field(512 << 20, ge=1, description="Video and sound of one job together.")
    upload_seconds: float = Field(600.0, gt=0, description="Longest time that an upload may take.")
    max_seconds: float = Field(300.0, gt=0, description="Longest video or sound.")
    max_side: int = Field(4096, gt=0, description="Largest frame side in pixels.")
    job_seconds: float = Field(3600.0, gt=0, description="Longest time that a job may run.")
    lease_seconds: float = Field(30.0, gt=0, description="A job whose worker is silent for so long is taken again.")
    max_attempts: int = Field(3, ge=1, description="How often a job is begun before it is given up.")
    model_check_seconds: float = Field(10.0, gt=0, description="How often an idle worker looks for a new champion.")
    retention_hours: float = Field(72.0, gt=0, description="Finished jobs are removed after this time.")
    retention_bytes: int = Field(20 << 30, ge=0, description="Finished jobs are removed, oldest first, beyond this.")
    min_free_bytes: int = Field(1 << 30, ge=0, description="Uploads are refused when the disk would have less left.")


class AutomationSettings(Config):
    """What happens without a hand: schedule, sensors, webhook, freshness, links."""

    running: bool = Field(False, description="Schedule and sensors are on at first; else switched on in the UI.")
    retrain_cron: str = Field("0 3 * * 0", description="When `weekly_retrain` starts.")
    timezone: str = Field("UTC", description="Time zone of the schedule.")
    promote_after_retrain: bool = Field(True, description="Whether a retrain ends with the promotion's decision.")
    retrain_after_hours: float = Field(
        0.001, gt=0, description="Hours of newly accepted pairs since the last editor that start a retrain."
    )
    rest_seconds: float = Field(20.0, ge=0, description="Footage is at rest when not written to for this long.")
    look_seconds: int = Field(15, ge=1, description="How often the sensors look.")
    again_after_seconds: float = Field(
        3600.0, ge=0, description="How long after its failure `new_footage` asks again for a copy or a taking in."
    )
    incoming_url: str | None = Field(
        None, pattern=r"^s3://[^/]+(/.*)?$", description="Bucket prefix that footage also arrives in."
    )
    lock_wait_seconds: float = Field(21_600, ge=0, description="How long a run waits for another one.")
    webhook_url: str | None = Field(
        None, pattern=r"^https?://", description="Gets failures as JSON; XDUB_WEBHOOK_SECRET becomes its bearer token."
    )
    webhook_timeout: float = Field(10.0, gt=0, description="Seconds that the webhook may take to answer.")
    webhook_retries: int = Field(3, ge=0, description="Further attempts within one look.")
    fresh_days: float = Field(9.0, gt=0, description="Age at which the dubber and what it is made of count as overdue.")
    mlflow_ui_url: str | None = Field(None, pattern=r"^https?://", description="MLflow's UI, for links.")
    files_url: str | None = Field(
        None, pattern=r"^https?://", description="Where a web server shows the state root's docs and report, for links."
    )


class SyncNetConfig(Config):
    """The chain's own SyncNet: the lip expert's teacher and the sync score."""

    seed: int = 0
    steps: int = Field(100, description="Optimiser steps.")
    min_accuracy: float = Field(0.85, description="In-vs-off accuracy below which the gate fails.")


class IdentityConfig(Config):
    """The chain's own identity encoder: pair filter and texture loss."""

    seed: int = 0
    steps: int = Field(200, description="Optimiser steps.")


class GateSettings(Config):
    """What a whole shard must satisfy; a pair's own thresholds are in `PairsConfig.filters`."""

    min_clips: int = Field(1, description="Accepted clips a shard needs.")
    max_quarantined: float = Field(0.5, description="Largest share of a shard's files in quarantine.")
    min_accepted: float = Field(0.1, description="Smallest share of a partition's pairs that pass the filters.")


class PromotionTolerances(Config):
    """How much worse a line of the score table may get; None does not look at it.

    Which way is better is the line's own (`model_code.metrics.scores.BARS`); those that should be zero count by
    their size. Sync-C and Sync-D have none: each retrain brings the SyncNet that measures them.
    """

    opening: float | None = 0.02
    width: float | None = 0.10
    pucker: float | None = 0.10
    opening_wrong_audio: float | None = 0.10
    width_wrong_audio: float | None = 0.10
    pucker_wrong_audio: float | None = 0.10
    leak_opening: float | None = 0.05
    leak_width: float | None = 0.10
    leak_pucker: float | None = 0.10
    lip_gain: float | None = Field(0.3, description="dB")
    outside_psnr: float | None = Field(1.0, description="dB")
    identity_ratio: float | None = 0.01
    silence: float | None = 0.05
    ssim: float | None = 0.01
    perceptual_distance: float | None = 0.005


class PromotionSettings(Config):
    """When a challenger becomes champion."""

    primary: str = Field("opening", description="Line of the score table in which the challenger must be better.")
    seed_spread: float = Field(0.02, ge=0, description="Gain in it that another seed alone can bring.")
    tolerances: PromotionTolerances = PromotionTolerances()


class PhasesSettings(Config):
    """The training phases; shifts 5.0 / 1.5 / 0.2 are the paper's."""

    generator: PhaseConfig = PhaseConfig(
        phase="generator",
        steps=20,
        batch_size=16,
        cells=8,
        whole_from=0.9,
        learning_rate=1e-4,
        uniform_times=True,
        shift=2.0,
    )
    editor: PhaseConfig = PhaseConfig(
        phase="editor",
        steps=50,
        batch_size=16,
        cells=8,
        whole_from=0.93,
        learning_rate=5e-5,
        warmup_steps=5,
        own_estimates=1.0,
    )
    lip: PhaseConfig = PhaseConfig(
        phase="lip",
        steps=16,
        shift=1.5,
        learning_rate=1e-2,
        warmup_steps=3,
        own_estimates=1.0,
        sync_weight=0.05,
        lora=LoraConfig(),
    )
    texture: PhaseConfig = PhaseConfig(
        phase="texture",
        steps=8,
        shift=0.2,
        learning_rate=3e-3,
        warmup_steps=3,
        own_estimates=1.0,
        identity_weight=0.05,
        perceptual_weight=0.05,
        silence_probability=0.5,
        lora=LoraConfig(),
    )


RegisteredName = Annotated[str, StringConstraints(pattern=r"^[\w.-]*(@[\w.-]+|/[1-9]\d*)$")]
"""`MODEL@ALIAS` or `MODEL/VERSION`; without MODEL it is the one that `xdub weights import` registers."""


class StartSettings(Config):
    """Registered weights that training starts from, as MODEL@ALIAS or MODEL/VERSION.

    MODEL may be left out: `@wan` and `@xdub` are what `xdub weights import` registers.
    """

    generator: RegisteredName | None = Field(
        None, description="None: the shipped prior, or random weights where the transformer has another shape."
    )
    editor: RegisteredName | None = Field(None, description="None: the generator's weights.")

    def named(self, asset: str) -> str | None:
        """What an asset's training starts from; None where nothing is named, or nothing can be."""
        found: str | None = getattr(self, asset, None)
        return found


WAN = "Wan-AI/Wan2.2-TI2V-5B-Diffusers"
RELEASED_BACKBONES = {
    "codec": WAN,
    "audio": ("openai/whisper-large-v2", "facebook/wav2vec2-base-960h"),
    "text": WAN,
}
FULL_SCALE_MEDIA = {"crop_size": 512, "crop_scale": 1.45}
RELEASED_FLOW = {
    "prediction": "v",
    "sampling_steps": 30,
    "sampling_shift": 5.0,
    "noise_scale": 1.0,
    "temperature": 1.0,
    "reference_guidance": 2.5,
    "audio_guidance": 10.0,
    "guidance_schedule": "release",
    "guidance_from": 0.0,
    "companion_share": 1.0,
    "border": True,
}


def _full_phase(
    phase: str, steps: int, batch_size: int, learning_rate: float, frames: int, **more: Any
) -> dict[str, Any]:
    return {
        "phase": phase,
        "steps": steps,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "clip_frames": frames,
        "face_weight": 0.3,
        "lip_weight": 0.3,
        "cells": None,
        "whole_from": 1.0,
        "pixel_weighting": False,
        "precision": "bf16",
        "reference_drop": 0.1,
        "judged_every": 1,
        "uniform_times": False,
        "own_estimates": 0.0,
        **more,
    }


LONG_WINDOWS: dict[str, Any] = {"accumulate": 4, "gradient_checkpointing": True}
"""With `accumulate` of the generator what `xdub plan --accelerators 8` says fits into 80 GB."""

FULL_SCALE_PHASES = {
    "generator": _full_phase("generator", 15_000, 256, 1e-5, 25, shift=5.0, accumulate=16),
    "editor": _full_phase("editor", 4_000, 256, 1e-5, 77, **LONG_WINDOWS),
    "lip": _full_phase("lip", 1_000, 64, 5e-6, 77, lora={"rank": 128, "alpha": 128}, **LONG_WINDOWS),
    "texture": _full_phase("texture", 1_000, 64, 5e-6, 77, lora={"rank": 128, "alpha": 128}, **LONG_WINDOWS),
}

PROFILES: dict[Profile, dict[str, Any]] = {
    "embedded": {},
    "embedded-full": {
        "syncnet": {"steps": 300},
        "identity": {"steps": 400},
        "pairs": {"clip_fraction": 1.0, "rendered_per_shard": 32},
        "phases": {
            "generator": {"steps": 60},
            "editor": {"steps": 200, "warmup_steps": 20},
            "lip": {"steps": 60},
            "texture": {"steps": 20},
        },
        "benchmark": {"cases": 24},
    },
    "workstation": {
        "automation": {"retrain_after_hours": 1.0, "rest_seconds": 120.0, "look_seconds": 60},
        "media": {"crop_size": 256},
        "processes": {"device": "cuda", "threads": 4},
        "clips_per_shard": 500,
        "phases": {
            "generator": {"steps": 8000, "batch_size": 32, "cells": None},
            "editor": {"steps": 8000, "batch_size": 32, "cells": None},
        },
    },
    "cluster": {
        "automation": {"retrain_after_hours": 10.0, "rest_seconds": 300.0, "look_seconds": 60},
        "media": FULL_SCALE_MEDIA,
        "transformer": PRESETS["xdub-wan-5b"].model_dump(),
        "start": {"generator": "@wan"},
        "backbones": RELEASED_BACKBONES,
        "flow": RELEASED_FLOW,
        "dubbing": {"stitching": "latents"},
        "pairs": {"sampling_steps": 4, "audio_guidance": 10.0},
        "phases": FULL_SCALE_PHASES,
        "processes": {
            "device": "cuda",
            "threads": 8,
            "parallel_runs": 1,  # each has all accelerators of this machine
            "training_threads": 32,
            "training_processes": 8,
            "trained_together": get_args(TrainedAsset),  # no expert fits on one accelerator
            "sharding": "sharded",
        },
        "kubernetes": {"gpus": {**GPUS, **dict.fromkeys(get_args(TrainedAsset), 8)}, "cpu": "32", "memory": "256Gi"},
        "clips_per_shard": 2000,
    },
}


SECRET: dict[str, Any] = {"database": {"url"}, "mlflow": {"tracking_uri"}, "automation": {"webhook_url"}}
"""Settings that may hold a password or a token."""


class ProfileSource(PydanticBaseSettingsSource):
    """Values of the chosen profile, below the environment and above the defaults."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Unused by `__call__`; the base class asks for it."""
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        """The profile's values, to be merged field by field."""
        profile = self.current_state.get("profile", "embedded")
        return dict(PROFILES.get(profile, {}))


class Settings(BaseSettings):
    """Resolved settings of one state root."""

    model_config = SettingsConfigDict(
        env_prefix="XDUB_",
        env_nested_delimiter="__",
        env_parse_none_str="null",
        nested_model_default_partial_update=True,
        extra="forbid",
        frozen=True,
    )

    profile: Profile = Field("embedded", description="Which set of numbers to start from.")
    state_root: Path = Field(Path(), description="Everything that runs write; default .xdub/<profile>.")
    seed: int = Field(0, description="Seed of the whole chain; phases add their own.")
    clips_per_shard: int = Field(48, ge=1, description="Incoming files that make one shard.")
    backbones: BackbonesConfig = BackbonesConfig()
    media: MediaConfig = MediaConfig()
    corpus: CorpusConfig = CorpusConfig()
    transformer: TransformerConfig = TransformerConfig()
    start: StartSettings = StartSettings()
    flow: FlowConfig = FlowConfig()
    dubbing: DubbingConfig = DubbingConfig()
    syncnet: SyncNetConfig = SyncNetConfig()
    identity: IdentityConfig = IdentityConfig()
    phases: PhasesSettings = PhasesSettings()
    pairs: PairsConfig = PairsConfig()
    variants: tuple[Variant, ...] = Field(get_args(Variant), description="Companion variants that are made.")
    benchmark: BenchmarkConfig = BenchmarkConfig()
    gates: GateSettings = GateSettings()
    processes: ProcessSettings = ProcessSettings()
    kubernetes: KubernetesSettings = KubernetesSettings()
    store: StoreSettings = StoreSettings()
    database: DatabaseSettings = DatabaseSettings()
    mlflow: MlflowSettings = MlflowSettings()
    automation: AutomationSettings = AutomationSettings()
    promotion: PromotionSettings = PromotionSettings()
    serving: ServingSettings = ServingSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments over environment over profile over defaults."""
        return init_settings, env_settings, ProfileSource(settings_cls)

    @model_validator(mode="after")
    def one_noise(self) -> Self:
        """The transformer undoes the noise that it is shown."""
        undone, shown = self.transformer.precondition, self.flow.noise_scale
        if undone not in (0, shown):
            raise ValueError(
                f"transformer.precondition {undone} is not flow.noise_scale {shown}: give them one value "
                "(with another than the default, training starts from random weights)"
            )
        return self

    @model_validator(mode="after")
    def an_accelerator_each(self) -> Self:
        """Pods of processes that train together have an accelerator for each."""
        if self.processes.launcher == "kubernetes" and self.processes.device == "cuda":
            wanted = self.processes.training_processes
            for asset in self.processes.trained_together:
                given = self.kubernetes.gpus.get(asset, 0)
                if given < wanted:
                    raise ValueError(
                        f"kubernetes.gpus.{asset} {given} is less than processes.training_processes {wanted}: "
                        "raise one or lower the other"
                    )
        return self

    @model_validator(mode="after")
    def one_crew(self) -> Self:
        """Processes that sample together take the first accelerators, so that there can be one worker of them."""
        if self.processes.sampling_processes > 1 and self.serving.devices:
            raise ValueError(
                f"serving.devices {list(self.serving.devices)} with processes.sampling_processes "
                f"{self.processes.sampling_processes}: leave the devices empty, or let one process sample"
            )
        return self

    def model_post_init(self, context: Any) -> None:
        """Fills in and absolutises the state root."""
        root = self.state_root if self.state_root != Path() else Path(".xdub") / self.profile
        object.__setattr__(self, "state_root", root.expanduser().absolute())

    def path(self, *parts: str) -> Path:
        """A place under the state root."""
        return self.state_root.joinpath(*parts)

    def without_secrets(self) -> dict[str, Any]:
        """The values as JSON, as anybody may see them."""
        return self.model_dump(mode="json", exclude=SECRET)

    @property
    def incoming(self) -> Path:
        """Where footage is dropped."""
        return self.path("incoming")

    @property
    def features(self) -> Path:
        """Where features of published audio and text encoders are kept."""
        return self.path("cache", "features")

    @property
    def mlflow_uri(self) -> str:
        """MLflow's tracking address."""
        return self.mlflow.tracking_uri or f"sqlite:///{self.path('mlflow', 'mlflow.db')}"

    @property
    def mlflow_shown(self) -> str:
        """The same as anybody may see it: an address of one's own may hold a password."""
        return "$XDUB_MLFLOW__TRACKING_URI" if self.mlflow.tracking_uri else self.mlflow_uri


def load_settings(**overrides: Any) -> Settings:
    """Resolves the settings of this process.

    Args:
        **overrides: Top-level fields that win over environment and profile.

    Raises:
        InputError: A value is unknown, out of range or no JSON where it has to be; the message names it.
    """
    try:
        return Settings(**overrides)
    except SettingsError as error:
        section, given = str(error).split('"')[1], getattr(error.__cause__, "doc", None)
        of_section = (name for name in sorted(os.environ) if name.upper().startswith(f"XDUB_{section.upper()}"))
        name = next((name for name in of_section if os.environ[name] == given), f"XDUB_{section.upper()}")
        told = f"{name}={given!r}" if section not in SECRET else name
        raise InputError(
            f"{told} is no JSON", """a list or a table is written as such: ["a", "b"] or {"a": 1}"""
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        place, given = first["loc"], first["input"]
        name = "__".join(str(part) for part in place).upper()
        # Neither a whole section nor what stands beside a secret, perhaps under a misspelt name, is shown.
        shown = isinstance(given, str | int | float) and place[0] not in SECRET
        told = f"setting {name}={given!r}" if shown else f"setting {name}" if place else "settings"
        remedy = "see `xdub doctor` for the settings in force; environment variables start with XDUB_"
        raise InputError(f"{told}: {first['msg']}", remedy) from None  # pydantic's own message shows the input too


KNOWN_ENVIRONMENT = frozenset(
    {"XDUB_GOLDEN_DIR", "XDUB_CLIPS_DIR", "XDUB_NO_SKIP", "XDUB_SCREENSHOTS", "XDUB_LOG", "XDUB_WEBHOOK_SECRET"}
)


def unknown_environment() -> list[str]:
    """XDUB_* variables that name no setting: most likely misspelt."""
    fields = {name.upper() for name in Settings.model_fields}
    names = (name for name in os.environ if name.startswith("XDUB_") and name not in KNOWN_ENVIRONMENT)
    return sorted(name for name in names if name.removeprefix("XDUB_").split("__")[0] not in fields)
