"""What Dagster loads, as a snapshot: assets, dependencies, partitions, checks, jobs, schedule, sensors."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import pytest
from dagster._core.remote_representation.external_data import JobDataSnap, RepositorySnap
from dagster._serdes import serialize_value

from xdub_platform.chain import KIND_TAG, PLAN
from xdub_platform.definitions import STAGES, build_definitions, code_version, stage_name
from xdub_platform.platform import Platform, build_platform
from xdub_platform.reporting import links
from xdub_platform.settings import Settings, load_settings

# asset: (inputs, partitions, blocking checks, other checks)
CHAIN: dict[str, tuple[set[str], str, set[str], set[str]]] = {
    "raw_corpus": (set(), "shard", set(), set()),
    "clips": ({"raw_corpus"}, "shard", {"clip_gate"}, set()),
    "syncnet": ({"clips"}, "", {"syncnet_accuracy"}, set()),
    "identity_encoder": ({"clips"}, "", set(), set()),
    "generator": ({"clips"}, "", set(), set()),
    "companion_pairs": ({"clips", "generator", "identity_encoder"}, "shard x variant", {"pair_gate"}, set()),
    "editor": ({"companion_pairs", "generator"}, "", set(), set()),
    "lip_expert": ({"companion_pairs", "editor", "syncnet"}, "", set(), set()),
    "texture_expert": ({"companion_pairs", "editor", "identity_encoder"}, "", set(), set()),
    "dubber": ({"editor", "lip_expert", "texture_expert"}, "", set(), set()),
    "benchmark_scores": ({"dubber", "generator", "syncnet"}, "", set(), {"benchmark_gate"}),
}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(state_root=tmp_path)


def partitions_of(definition: dg.PartitionsDefinition | None) -> str:
    if isinstance(definition, dg.MultiPartitionsDefinition):
        return " x ".join(definition.partition_dimension_names)
    return str(definition.name) if isinstance(definition, dg.DynamicPartitionsDefinition) else ""


def test_the_chain(settings: Settings) -> None:
    graph = build_definitions(settings).resolve_asset_graph()
    found = {}
    for key in graph.get_all_asset_keys():
        node = graph.get(key)
        checks = [graph.get_check_spec(check) for check in graph.get_check_keys_for_assets({key})]
        found[key.to_user_string()] = (
            {parent.to_user_string() for parent in node.parent_keys},
            partitions_of(node.partitions_def),
            {check.name for check in checks if check.blocking},
            {check.name for check in checks if not check.blocking},
        )
    assert found == CHAIN


def test_every_asset_is_described_owned_and_grouped(settings: Settings) -> None:
    for spec in build_definitions(settings).resolve_all_asset_specs():
        assert spec.description, spec.key
        assert spec.owners, spec.key
        assert spec.tags, spec.key
        assert spec.kinds, spec.key
        assert spec.group_name != "default", spec.key
        assert spec.code_version, spec.key


# job: whether it plans, and so runs alone
JOBS = {
    "fetch_footage": False,
    "full_chain": True,
    "promote": False,
    "publish": False,
    "rebase_generator": True,
    "retrain": True,
    "roll_back": False,
    "take_in_footage": True,
}
SENSORS = {"failures_to_webhook": set(), "new_footage": {"fetch_footage", "retrain", "take_in_footage"}}
OVERDUE_AFTER_A_WEEK = {"editor", "lip_expert", "texture_expert", "dubber", "benchmark_scores"}


def test_jobs_schedule_and_sensors(settings: Settings) -> None:
    repository = build_definitions(settings).get_repository_def()
    jobs = {job.name: job.tags.get(KIND_TAG) == PLAN for job in repository.get_all_jobs()}
    assert {name: plans for name, plans in jobs.items() if not name.startswith("__")} == JOBS
    (schedule,) = repository.schedule_defs
    assert (schedule.name, schedule.job_name, schedule.cron_schedule) == ("weekly_retrain", "retrain", "0 3 * * 0")
    assert {sensor.name: {job.job_name for job in sensor.targets} for sensor in repository.sensor_defs} == SENSORS
    assert all(job.description for job in repository.get_all_jobs() if not job.name.startswith("__"))


def test_nothing_starts_by_itself_until_a_setting_says_so(settings: Settings) -> None:
    for running in (False, True):
        chosen = load_settings(state_root=settings.state_root, automation={"running": running})
        repository = build_definitions(chosen).get_repository_def()
        statuses = {each.default_status.value for each in (*repository.schedule_defs, *repository.sensor_defs)}
        assert statuses == {"RUNNING" if running else "STOPPED"}


def test_what_the_weekly_retrain_makes_has_a_freshness_policy(settings: Settings) -> None:
    specs = build_definitions(settings).resolve_all_asset_specs()
    assert {spec.key.to_user_string() for spec in specs if spec.freshness_policy} == OVERDUE_AFTER_A_WEEK


def test_strings_select_assets(settings: Settings) -> None:
    graph = build_definitions(settings).resolve_asset_graph()
    chosen = dg.AssetSelection.from_string("editor+").resolve(graph)
    names = {key.to_user_string() for key in chosen}
    assert names == {"editor", "lip_expert", "texture_expert", "dubber"}


@pytest.mark.parametrize(
    ("variable", "stale"),
    [
        ("XDUB_PHASES__LIP__STEPS", {"lip_expert"}),
        ("XDUB_SYNCNET__STEPS", {"syncnet"}),
        ("XDUB_PAIRS__FILTERS__MOUTH_DISTANCE", {"companion_pairs"}),
        ("XDUB_BENCHMARK__CASES", {"benchmark_scores"}),
        ("XDUB_PROCESSES__THREADS", set()),
    ],
)
def test_a_setting_makes_stale_what_reads_it(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, variable: str, stale: set[str]
) -> None:
    before = {stage_name(stage): code_version(stage, settings) for stage in STAGES}
    monkeypatch.setenv(variable, "3")
    changed = load_settings(state_root=settings.state_root)
    after = {stage_name(stage): code_version(stage, changed) for stage in STAGES}
    assert {name for name in before if before[name] != after[name]} == stale


def test_what_dagster_publishes_holds_no_secret_and_runs_still_have_them(tmp_path: Path) -> None:
    settings = load_settings(
        state_root=tmp_path,
        database={"url": "postgresql://xdub:database-word@host/dagster"},
        mlflow={"tracking_uri": "postgresql://xdub:mlflow-word@host/mlflow"},
        automation={"webhook_url": "https://hooks.example/webhook-token"},
    )
    had: list[tuple[Settings, str]] = []

    @dg.asset
    def reads(platform: Platform) -> None:
        had.append((platform.settings, platform.mlflow.tracking_uri))

    repository = build_definitions(settings).get_repository_def()
    jobs = [JobDataSnap.from_job_def(job, include_parent_snapshot=True) for job in repository.get_all_jobs()]
    published = "".join(serialize_value(each) for each in (RepositorySnap.from_def(repository), *jobs))
    published += "".join(link.note for link in links(settings))
    assert str(tmp_path) in published
    for secret in ("database-word", "mlflow-word", "webhook-token"):
        assert secret not in published
    assert dg.materialize([reads], resources={"platform": build_platform(settings)}).success
    assert had == [(settings, settings.mlflow.tracking_uri)]
