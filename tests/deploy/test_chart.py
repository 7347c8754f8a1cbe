"""Values of Dagster's chart and the jobs that follow from them.

The chart itself is on no package index: its templates are applied by hand here (camel case becomes the run
launcher's snake case), then Dagster's own code makes the jobs, and Kubernetes' schema judges them.
"""

from __future__ import annotations

import importlib
import json
import re
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import dagster as dg
import kubernetes_validate
import pytest
from dagster._config import validate_config
from dagster._core.code_pointer import ModuleCodePointer
from dagster._core.instance.config import dagster_instance_config_schema
from dagster._core.origin import JobPythonOrigin, RepositoryPythonOrigin
from dagster._core.storage.dagster_run import DagsterRun
from dagster_k8s import K8sRunLauncher
from dagster_k8s.container_context import K8sContainerContext
from dagster_k8s.job import (
    UserDefinedDagsterK8sConfig,
    construct_dagster_k8s_job,
    get_job_name_from_run_id,
    get_user_defined_k8s_config,
)
from kubernetes.client import ApiClient

from model_code.errors import InputError
from xdub_platform.definitions import STAGES, build_definitions, stage_name
from xdub_platform.instance import instance_config
from xdub_platform.kubernetes import CONFIG_TAG, executor, step_config, step_tags
from xdub_platform.settings import Settings, load_settings

POD = {"image", "envConfigMaps", "envSecrets", "podSecurityContext", "securityContext", "resources"}
SMALL = ("1", "8Gi")
#: The names that we set, written down a second time: the chart and its schema are not here to be asked.
KNOWN = {
    ("global",): {"postgresqlSecretName"},
    ("postgresql",): {
        "enabled",
        "postgresqlHost",
        "postgresqlUsername",
        "postgresqlDatabase",
        "postgresqlPassword",
        "service",
    },
    ("dagsterWebserver",): POD
    | {"replicaCount", "nameOverride", "service", "readinessProbe", "livenessProbe", "startupProbe"},
    ("dagster-user-deployments",): {"enabled", "enableSubchart", "deployments"},
    ("dagsterDaemon",): POD | {"enabled", "runCoordinator", "runMonitoring", "runRetries"},
    ("dagsterDaemon", "runCoordinator"): {"enabled", "type", "config"},
    ("dagsterDaemon", "runCoordinator", "config"): {"customRunCoordinator"},
    ("dagsterDaemon", "runCoordinator", "config", "customRunCoordinator"): {"module", "class", "config"},
    ("runLauncher",): {"type", "config"},
    ("runLauncher", "config", "k8sRunLauncher"): {
        "imagePullPolicy",
        "loadInclusterConfig",
        "failPodOnRunFailure",
        "envConfigMaps",
        "envSecrets",
        "envVars",
        "volumes",
        "volumeMounts",
        "securityContext",
        "resources",
        "runK8sConfig",
    },
    ("runLauncher", "config", "k8sRunLauncher", "runK8sConfig"): {"podSpecConfig", "jobSpecConfig"},
    (): {
        "global",
        "generatePostgresqlPasswordSecret",
        "postgresql",
        "rabbitmq",
        "redis",
        "telemetry",
        "dagsterWebserver",
        "dagster-user-deployments",
        "runLauncher",
        "dagsterDaemon",
        "additionalInstanceConfig",
    },
}


@pytest.fixture
def values(deploy: Any) -> dict[str, Any]:
    (found,) = deploy.documents("kubernetes/dagster-values.yaml")
    return found


@pytest.fixture
def cluster(deploy: Any, monkeypatch: pytest.MonkeyPatch) -> Settings:
    (document,) = deploy.documents("kubernetes/settings.yaml")
    for name, value in document["data"].items():
        monkeypatch.setenv(name, value)
    return load_settings()


def snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])([A-Z])", lambda match: f"_{match[1].lower()}", name)


def launcher_config(values: dict[str, Any]) -> dict[str, Any]:
    """What the chart's template writes into dagster.yaml; it leaves empty lists out."""
    given = {name: value for name, value in values["runLauncher"]["config"]["k8sRunLauncher"].items() if value != []}
    given["runK8sConfig"] = {snake(name): value for name, value in given["runK8sConfig"].items()}
    return {
        **{snake(name): value for name, value in given.items()},
        "job_namespace": "xdub",
        "service_account_name": "dagster",
        "dagster_home": "/opt/dagster/dagster_home",
        "instance_config_map": "dagster-instance",
        "postgres_password_secret": values["global"]["postgresqlSecretName"],
    }


@pytest.fixture
def launcher(values: dict[str, Any], tmp_path: Path) -> K8sRunLauncher:
    """The real launcher; it reads an address from a file and calls nobody."""
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "c",
                "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
                "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:1"}}],
                "users": [{"name": "u", "user": {}}],
            }
        ),
        encoding="utf-8",
    )
    config = {**launcher_config(values), "load_incluster_config": False, "kubeconfig_file": str(kubeconfig)}
    checked = validate_config(K8sRunLauncher.config_type(), config)
    assert checked.success, checked.errors
    return K8sRunLauncher(**checked.value)


@pytest.fixture
def run(values: dict[str, Any]) -> DagsterRun:
    """A run of the code location, with the context that the chart gives its deployment."""
    (deployment,) = values["dagster-user-deployments"]["deployments"]
    context = {
        "image_pull_policy": deployment["image"]["pullPolicy"],
        "env_config_maps": [each["name"] for each in deployment["envConfigMaps"]],
        "env_secrets": [each["name"] for each in deployment["envSecrets"]],
        "volumes": deployment["volumes"],
        "volume_mounts": deployment["volumeMounts"],
        "resources": deployment["resources"],
        "security_context": deployment["securityContext"],
        "namespace": "xdub",
    }
    image = f"{deployment['image']['repository']}:{deployment['image']['tag']}"

    pointer = ModuleCodePointer("xdub_platform.definitions", "defs")
    origin = RepositoryPythonOrigin("python", pointer, image, container_context={"k8s": context})
    return DagsterRun("__ASSET_JOB", job_code_origin=JobPythonOrigin("__ASSET_JOB", origin))


def job_of(launcher: K8sRunLauncher, context: K8sContainerContext, image: str | None, name: str) -> dict[str, Any]:
    config = context.get_k8s_job_config(image, launcher)
    job = construct_dagster_k8s_job(config, ["dagster", "api"], name, context.run_k8s_config)
    return ApiClient().sanitize_for_serialization(job)


def step_job(launcher: K8sRunLauncher, run: DagsterRun, settings: Settings, asset: str) -> dict[str, Any]:
    """The job of an asset's step."""
    definitions = build_definitions(settings)
    (op,) = [each.op for each in definitions.assets or [] if each.key.to_user_string() == asset]  # type: ignore[union-attr]
    return op_job(launcher, run, settings, op)


def op_job(launcher: K8sRunLauncher, run: DagsterRun, settings: Settings, op: dg.OpDefinition) -> dict[str, Any]:
    """As `K8sStepHandler` merges it: launcher and code location, executor, the step's tags."""
    own = executor(settings).apply_config_mapping({"config": {}}).value["config"]
    context = K8sContainerContext.create_for_run(run, launcher, include_run_tags=False)
    context = context.merge(
        K8sContainerContext(run_k8s_config=UserDefinedDagsterK8sConfig.from_dict(own["step_k8s_config"]))
    )
    context = context.merge(K8sContainerContext(run_k8s_config=get_user_defined_k8s_config(op.tags)))
    return job_of(launcher, context, own.get("job_image"), "dagster-step-0123")


@pytest.mark.parametrize("section", sorted(KNOWN))
def test_no_name_changes_by_a_slip(values: dict[str, Any], section: tuple[str, ...]) -> None:
    place: Any = values
    for part in section:
        place = place[part]
    assert set(place) == KNOWN[section]


def test_images_have_our_version(values: dict[str, Any]) -> None:
    images = [
        values["dagsterWebserver"]["image"],
        values["dagsterDaemon"]["image"],
        values["dagster-user-deployments"]["deployments"][0]["image"],
    ]
    for image in images:
        assert image["tag"] == distribution("xdub-platform").version
        assert image["repository"].endswith("/control-plane")


def test_parts_of_the_chart_fit_the_schema(values: dict[str, Any], deploy: Any) -> None:
    """Every pod of the chart, put together from our parts, is strictly valid."""
    webserver, daemon = values["dagsterWebserver"], values["dagsterDaemon"]
    (location,) = values["dagster-user-deployments"]["deployments"]
    for name, part in {"webserver": webserver, "daemon": daemon, "location": location}.items():
        probes = {key: part[key] for key in ("readinessProbe", "livenessProbe", "startupProbe") if key in part}
        for probe in probes.values():
            probe.pop("enabled", None)
            probe.setdefault("exec", {"command": ["x"]}) if "httpGet" not in probe else None
        container = {
            "name": name,
            "image": f"{part['image']['repository']}:{part['image']['tag']}",
            "imagePullPolicy": part["image"]["pullPolicy"],
            "envFrom": [{"configMapRef": each} for each in part["envConfigMaps"]]
            + [{"secretRef": each} for each in part["envSecrets"]],
            "securityContext": part["securityContext"],
            "resources": part["resources"],
            "volumeMounts": part.get("volumeMounts", []),
            **probes,
        }
        spec = {
            "containers": [container],
            "securityContext": part["podSecurityContext"],
            "volumes": part.get("volumes", []),
        }
        deploy.strictly_valid({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec})
        assert part["podSecurityContext"]["runAsNonRoot"] is True
        assert part["securityContext"]["allowPrivilegeEscalation"] is False
        assert part["resources"]["limits"]["memory"]


def test_references_exist(values: dict[str, Any], cluster: Settings, deploy: Any) -> None:
    offered = set(re.findall(r"create secret generic (\S+)", deploy.text("kubernetes/secrets.env.example")))
    (location,) = values["dagster-user-deployments"]["deployments"]
    for part in (values["dagsterWebserver"], values["dagsterDaemon"], location):
        assert part["envConfigMaps"] == [{"name": "xdub-settings"}]
        assert {each["name"] for each in part["envSecrets"]} <= offered
    assert values["global"]["postgresqlSecretName"] in offered
    (state,) = deploy.documents("kubernetes/state.yaml")
    assert location["volumes"][0]["persistentVolumeClaim"]["claimName"] == state["metadata"]["name"]
    assert location["volumeMounts"][0]["mountPath"] == str(cluster.state_root)
    assert location["dagsterApiGrpcArgs"] == ["--module-name", "xdub_platform.definitions"]
    service = f"dagster-{values['dagsterWebserver']['nameOverride']}"
    assert cluster.kubernetes.webserver == f"http://{service}:{values['dagsterWebserver']['service']['port']}"
    assert (
        values["dagsterWebserver"]["readinessProbe"]["httpGet"]["port"] == values["dagsterWebserver"]["service"]["port"]
    )


def test_run_monitoring_is_dagsters(values: dict[str, Any], cluster: Settings) -> None:
    """The chart's template cannot say the longest run time; what we write in its place, Dagster accepts."""
    monitoring = values["additionalInstanceConfig"]["run_monitoring"]
    checked = validate_config(dagster_instance_config_schema()["run_monitoring"].config_type, monitoring)
    assert checked.success, checked.errors
    assert values["dagsterDaemon"]["runMonitoring"] == {"enabled": False}, "else the section would be there twice"
    assert monitoring["enabled"] is True
    assert monitoring["max_resume_run_attempts"] == 0
    assert monitoring["max_runtime_seconds"] >= cluster.kubernetes.max_seconds
    assert not validate_config(
        dagster_instance_config_schema()["run_monitoring"].config_type, {**monitoring, "max_runtime": 1}
    ).success


def test_the_instance_is_that_of_the_settings(values: dict[str, Any], cluster: Settings) -> None:
    """The chart writes dagster.yaml itself; what our own code writes elsewhere must not drift from it."""
    ours, theirs = instance_config(cluster), values["additionalInstanceConfig"]
    coordinator = values["dagsterDaemon"]["runCoordinator"]["config"]["customRunCoordinator"]
    assert coordinator == ours["run_coordinator"]
    made = getattr(importlib.import_module(coordinator["module"]), coordinator["class"])
    checked = validate_config(made.config_type(), coordinator["config"])
    assert checked.success, checked.errors
    written_by_chart = {"telemetry", "run_coordinator", "storage"}
    # Where code servers start beside the instance; on a cluster they are deployments of their own.
    for name in set(ours) - written_by_chart - {"code_servers"}:
        assert theirs[name] == ours[name], name
    assert values["telemetry"] == ours["telemetry"]
    assert values["dagsterDaemon"]["runRetries"] == {"enabled": False}, "else the section would be there twice"


def test_the_runs_job(launcher: K8sRunLauncher, run: DagsterRun, deploy: Any, values: dict[str, Any]) -> None:
    context = K8sContainerContext.create_for_run(run, launcher, include_run_tags=True)
    image = run.job_code_origin.repository_origin.container_image  # type: ignore[union-attr]
    job = job_of(launcher, context, image, get_job_name_from_run_id(run.run_id))
    deploy.strictly_valid(job)
    assert job["spec"]["backoffLimit"] == 0
    assert (
        job["spec"]["activeDeadlineSeconds"]
        == values["additionalInstanceConfig"]["run_monitoring"]["max_runtime_seconds"]
    )
    pod, container = job["spec"]["template"]["spec"], job["spec"]["template"]["spec"]["containers"][0]
    assert len(job["metadata"]["name"]) <= 63
    assert pod["restartPolicy"] == "Never"
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container["image"].rpartition(":")[0].endswith("/control-plane")
    assert not any("gpu" in name for name in container["resources"]["limits"]), "only steps have accelerators"


@pytest.mark.parametrize("asset", [stage_name(stage) for stage in STAGES])
def test_every_steps_job(launcher: K8sRunLauncher, run: DagsterRun, cluster: Settings, deploy: Any, asset: str) -> None:
    job = step_job(launcher, run, cluster, asset)
    deploy.strictly_valid(job)
    pod, container = job["spec"]["template"]["spec"], job["spec"]["template"]["spec"]["containers"][0]
    assert job["spec"]["backoffLimit"] == 0
    assert job["spec"]["activeDeadlineSeconds"] == cluster.kubernetes.max_seconds
    assert job["spec"]["ttlSecondsAfterFinished"] > 0
    assert pod["restartPolicy"] == "Never"
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["fsGroup"] == 10001
    assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert container["image"] == cluster.kubernetes.worker_image
    count = cluster.kubernetes.gpus.get(asset, 0)
    limits, requests = container["resources"]["limits"], container["resources"]["requests"]
    cpu, memory = SMALL if asset == "raw_corpus" else ("32", "256Gi")
    assert limits == {"memory": memory} | ({"nvidia.com/gpu": str(count)} if count else {})
    assert requests == {"cpu": cpu, "memory": memory}
    tolerated = [each["key"] for each in pod.get("tolerations", [])]
    assert tolerated == (["nvidia.com/gpu"] if count else [])
    assert {"name": "state", "mountPath": "/state"} in container["volumeMounts"]
    assert {"configMapRef": {"name": "xdub-settings"}} in container["envFrom"]
    assert {"secretRef": {"name": "xdub"}} in container["envFrom"]


def test_steps_that_plan_and_act_are_small(
    launcher: K8sRunLauncher, run: DagsterRun, cluster: Settings, deploy: Any
) -> None:
    """A planner's step waits for days; it must not keep a node's worth of processors and memory from those it made."""
    jobs: list[Any] = list(build_definitions(cluster).jobs or [])
    ops = {name: node.definition for job in jobs for name, node in job.graph.node_dict.items()}
    assert {"run_full_chain", "run_retrain", "promote_if_better", "promote_model", "publish_registry"} <= ops.keys()
    for name, op in ops.items():
        made = op_job(launcher, run, cluster, op)
        deploy.strictly_valid(made)
        resources = made["spec"]["template"]["spec"]["containers"][0]["resources"]
        cpu, memory = SMALL
        assert resources == {"requests": {"cpu": cpu, "memory": memory}, "limits": {"memory": memory}}, name


def test_a_wrong_tag_is_refused(launcher: K8sRunLauncher, run: DagsterRun, cluster: Settings, deploy: Any) -> None:
    job = step_job(launcher, run, cluster, "editor")
    job["spec"]["template"]["spec"]["containers"][0]["resources"]["limit"] = {"nvidia.com/gpu": "1"}
    with pytest.raises(kubernetes_validate.ValidationError):
        deploy.strictly_valid(job)


def test_resources_are_of_assets_that_exist(cluster: Settings) -> None:
    assert {*cluster.kubernetes.gpus, *cluster.kubernetes.large} <= {stage_name(stage) for stage in STAGES}


def test_processes_that_train_together_have_an_accelerator_each_and_shared_memory(
    launcher: K8sRunLauncher, run: DagsterRun, cluster: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = cluster.processes.trained_together
    assert set(together) == {"generator", "editor", "lip_expert", "texture_expert"}
    assert {cluster.kubernetes.gpus[asset] for asset in together} == {cluster.processes.training_processes}
    monkeypatch.setenv("XDUB_PROCESSES__TRAINING_PROCESSES", "4")
    monkeypatch.setenv("XDUB_KUBERNETES__GPUS__GENERATOR", "4")
    monkeypatch.setenv("XDUB_KUBERNETES__GPUS__EDITOR", "2")
    with pytest.raises(InputError, match=r"kubernetes\.gpus\.editor 2 is less than processes\.training_processes 4"):
        load_settings()
    monkeypatch.setenv("XDUB_KUBERNETES__GPUS__EDITOR", "4")
    monkeypatch.setenv("XDUB_KUBERNETES__GPUS__LIP_EXPERT", "1")
    with pytest.raises(InputError, match=r"kubernetes\.gpus\.lip_expert 1 is less than"):
        load_settings()
    monkeypatch.setenv("XDUB_PROCESSES__TRAINED_TOGETHER", '["generator", "editor", "texture_expert"]')
    pods = {
        asset: step_job(launcher, run, load_settings(), asset)["spec"]["template"]["spec"]
        for asset in ("editor", "texture_expert", "syncnet")
    }
    shared = {"name": "shared-memory", "mountPath": "/dev/shm"}
    for asset in ("editor", "texture_expert"):
        assert shared in pods[asset]["containers"][0]["volumeMounts"]
        assert {"name": "shared-memory", "emptyDir": {"medium": "Memory"}} in pods[asset]["volumes"]
    assert shared not in pods["syncnet"]["containers"][0]["volumeMounts"]


def test_settings_choose(cluster: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """No code changes: one setting switches executor and tags."""
    local = Settings.model_validate({**cluster.model_dump(), "processes": {"launcher": "local"}})
    assert executor(local) is dg.in_process_executor
    assert step_tags("editor", local) == {}
    assert build_definitions(local).executor is dg.in_process_executor
    assert build_definitions(cluster).executor.name == "k8s"  # type: ignore[union-attr]
    monkeypatch.setenv("XDUB_KUBERNETES__GPUS__EDITOR", "8")
    monkeypatch.setenv("XDUB_KUBERNETES__GPUS__SYNCNET", "0")
    monkeypatch.setenv("XDUB_KUBERNETES__GPU_RESOURCE", "amd.com/gpu")
    more = load_settings()
    editor, syncnet = (
        step_tags(asset, more)[CONFIG_TAG]["container_config"]["resources"]["limits"] for asset in ("editor", "syncnet")
    )
    assert editor == {"memory": "256Gi", "amd.com/gpu": "8"}
    assert syncnet == {"memory": "256Gi"}
    assert step_tags("raw_corpus", more) == {}
    assert step_config(more)["job_spec_config"]["backoff_limit"] == 0
