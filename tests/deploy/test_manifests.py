"""Kubernetes manifests: strictly valid, and what we ask of every pod."""

from __future__ import annotations

import re
from importlib.metadata import distribution
from typing import Any

import kubernetes_validate
import pytest
import yaml

FILES = ("namespace.yaml", "settings.yaml", "state.yaml", "mlflow.yaml", "server.yaml", "network.yaml")
BY_HAND = ("server", "worker")
"""Pods that somebody starts for a command or two; no part of the kustomization."""
NAME = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")


@pytest.fixture
def manifests(deploy: Any) -> list[dict[str, Any]]:
    return [document for name in FILES for document in deploy.documents(f"kubernetes/{name}")]


def of_kind(manifests: list[dict[str, Any]], kind: str) -> dict[str, dict[str, Any]]:
    return {each["metadata"]["name"]: each for each in manifests if each["kind"] == kind}


@pytest.mark.parametrize("name", [*FILES, *(f"by-hand/{name}.yaml" for name in BY_HAND)])
def test_schema(deploy: Any, name: str) -> None:
    documents = deploy.documents(f"kubernetes/{name}")
    assert documents
    for document in documents:
        deploy.strictly_valid(document)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "replicaz"), 1),
        (("spec", "template", "spec", "securityContext", "runAsNonroot"), True),
        (("spec", "template", "spec", "containers", 0, "resources", "limit"), {}),
        (("spec", "template", "spec", "containers", 0, "livenessProbe", "periodSeconds"), "often"),
    ],
)
def test_schema_is_strict(deploy: Any, manifests: list[dict[str, Any]], path: tuple[Any, ...], value: Any) -> None:
    place: Any = of_kind(manifests, "Deployment")["server"]
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    with pytest.raises(kubernetes_validate.ValidationError):
        deploy.strictly_valid(of_kind(manifests, "Deployment")["server"])


def test_names(manifests: list[dict[str, Any]]) -> None:
    assert [(each["kind"], each["metadata"]["name"]) for each in manifests] == [
        ("Namespace", "xdub"),
        ("ConfigMap", "xdub-settings"),
        ("PersistentVolumeClaim", "xdub-state"),
        ("PersistentVolumeClaim", "mlflow-artifacts"),
        ("Service", "mlflow"),
        ("Deployment", "mlflow"),
        ("PersistentVolumeClaim", "server-state"),
        ("Service", "server"),
        ("Deployment", "server"),
        ("NetworkPolicy", "server"),
        ("NetworkPolicy", "mlflow"),
    ]
    for each in manifests:
        assert NAME.fullmatch(each["metadata"]["name"])
        assert each["metadata"]["labels"]["app.kubernetes.io/part-of"] == "xdub"
        assert each["kind"] == "Namespace" or each["metadata"]["namespace"] == "xdub"


def test_the_docs_name_every_place_to_fill_in(deploy: Any) -> None:
    page = (deploy.repository / "docs" / "deploy.md").read_text(encoding="utf-8")
    folder = deploy.folder / "kubernetes"
    for path in folder.rglob("*.yaml"):
        for placeholder in set(re.findall(r"(?:http://)?\w+\.example\.com", path.read_text(encoding="utf-8"))):
            (row,) = re.findall(rf"^\| `{placeholder}` \|.*$", page, re.MULTILINE)
            assert f"`{path.relative_to(folder)}`" in row


def test_kustomization_names_every_file(deploy: Any, manifests: list[dict[str, Any]]) -> None:
    (kustomization,) = deploy.documents("kubernetes/kustomization.yaml")
    present = {path.name for path in (deploy.folder / "kubernetes").glob("*.yaml")}
    assert set(kustomization["resources"]) == set(FILES) == present - {"kustomization.yaml", "dagster-values.yaml"}
    images = {each["name"]: each["newTag"] for each in kustomization["images"]}
    used = {pod["containers"][0]["image"].rpartition(":")[0] for pod in pods(manifests).values()}
    assert set(images) == used
    assert set(images.values()) == {distribution("xdub-platform").version}


def pods(manifests: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    deployments = of_kind(manifests, "Deployment")
    return {name: deployment["spec"]["template"]["spec"] for name, deployment in deployments.items()}


@pytest.mark.parametrize("name", ["mlflow", "server"])
def test_every_pod(manifests: list[dict[str, Any]], name: str) -> None:
    deployment = of_kind(manifests, "Deployment")[name]
    pod = pods(manifests)[name]
    (container,) = pod["containers"]
    assert deployment["spec"]["strategy"] == {"type": "Recreate"}, "its volume has one writer"
    assert deployment["spec"]["replicas"] == 1
    assert pod.get("restartPolicy", "Always") == "Always"
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == pod["securityContext"]["fsGroup"] == 10001
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not container["image"].endswith(":latest")
    assert container["resources"]["limits"]["memory"]
    assert {"cpu", "memory"} <= set(container["resources"]["requests"])
    ports = {each["name"] for each in container["ports"]}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["port"] in ports
        assert container[probe]["timeoutSeconds"] <= container[probe]["periodSeconds"]
    mounts = {each["name"] for each in container["volumeMounts"]}
    assert mounts == {each["name"] for each in pod["volumes"]}
    assert "/tmp" in {each["mountPath"] for each in container["volumeMounts"]}


@pytest.mark.parametrize("name", BY_HAND)
def test_pods_for_work_by_hand(manifests: list[dict[str, Any]], deploy: Any, name: str) -> None:
    """They see what the pods see that they stand in for, and are hardened as well; no Service or policy means them."""
    assert {path.stem for path in (deploy.folder / "kubernetes" / "by-hand").iterdir()} == set(BY_HAND)
    (manifest,) = deploy.documents(f"kubernetes/by-hand/{name}.yaml")
    assert (manifest["kind"], manifest["metadata"]["name"]) == ("Pod", f"{name}-by-hand")
    assert manifest["metadata"]["labels"] == {
        "app.kubernetes.io/name": f"{name}-by-hand",
        "app.kubernetes.io/part-of": "xdub",
    }
    pod, (container,) = manifest["spec"], manifest["spec"]["containers"]
    server = pods(manifests)["server"]
    assert pod["restartPolicy"] == "Never"
    assert pod["activeDeadlineSeconds"]
    for field in ("automountServiceAccountToken", "securityContext"):
        assert pod[field] == server[field]
    for field in ("securityContext", "envFrom", "volumeMounts", "imagePullPolicy"):
        assert container[field] == server["containers"][0][field]
    assert container["resources"]["limits"].keys() == {"memory"}
    assert container["image"] == f"registry.example.com/xdub/{name}:{distribution('xdub-platform').version}"


def test_the_servers_pod_by_hand_is_on_its_node_and_volume(manifests: list[dict[str, Any]], deploy: Any) -> None:
    (manifest,) = deploy.documents("kubernetes/by-hand/server.yaml")
    deployment, pod = of_kind(manifests, "Deployment")["server"], manifest["spec"]
    server = deployment["spec"]["template"]
    (near,) = pod["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert near["labelSelector"]["matchLabels"].items() <= server["metadata"]["labels"].items()
    assert pod["tolerations"] == server["spec"]["tolerations"]
    assert pod["volumes"][0] == server["spec"]["volumes"][0]
    assert pod["containers"][0]["env"] == server["spec"]["containers"][0]["env"]
    assert pod["containers"][0]["image"] == server["spec"]["containers"][0]["image"]


def test_the_workers_pod_by_hand_is_on_the_chains_state(manifests: list[dict[str, Any]], deploy: Any) -> None:
    (manifest,) = deploy.documents("kubernetes/by-hand/worker.yaml")
    claim = manifest["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"]
    assert claim in of_kind(manifests, "PersistentVolumeClaim")
    (values,) = deploy.documents("kubernetes/dagster-values.yaml")
    (location,) = values["dagster-user-deployments"]["deployments"]
    assert manifest["spec"]["volumes"][0] == location["volumes"][0]
    settings = of_kind(manifests, "ConfigMap")["xdub-settings"]["data"]
    assert manifest["spec"]["containers"][0]["image"] == settings["XDUB_KUBERNETES__WORKER_IMAGE"]


def test_downloads_lie_on_the_volume(manifests: list[dict[str, Any]]) -> None:
    settings = of_kind(manifests, "ConfigMap")["xdub-settings"]["data"]
    assert settings["HF_HOME"] == f"{settings['XDUB_STATE_ROOT']}/cache/huggingface"


def test_the_server_has_an_accelerator_and_only_it(manifests: list[dict[str, Any]]) -> None:
    limits = {name: pod["containers"][0]["resources"]["limits"] for name, pod in pods(manifests).items()}
    assert limits["server"]["nvidia.com/gpu"] == "1"
    assert "nvidia.com/gpu" not in limits["mlflow"]


def test_references_exist(manifests: list[dict[str, Any]], deploy: Any) -> None:
    """Services, policies, volumes, config maps and secrets are what other files create."""
    labels = {name: each["spec"]["template"]["metadata"]["labels"] for name, each in deployments_of(manifests)}
    for name, deployment in deployments_of(manifests):
        assert deployment["spec"]["selector"]["matchLabels"].items() <= labels[name].items()
    for name, service in of_kind(manifests, "Service").items():
        assert service["spec"]["selector"].items() <= labels[name].items()
        container_ports = {each["name"] for each in pods(manifests)[name]["containers"][0]["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= container_ports
    for name, policy in of_kind(manifests, "NetworkPolicy").items():
        assert policy["spec"]["podSelector"]["matchLabels"].items() <= labels[name].items()
    claims = of_kind(manifests, "PersistentVolumeClaim")
    offered = set(re.findall(r"create secret generic (\S+)", deploy.text("kubernetes/secrets.env.example")))
    for pod in pods(manifests).values():
        for volume in pod["volumes"]:
            assert "emptyDir" in volume or volume["persistentVolumeClaim"]["claimName"] in claims
        for source in pod["containers"][0].get("envFrom", []):
            if "configMapRef" in source:
                assert source["configMapRef"]["name"] in of_kind(manifests, "ConfigMap")
            else:
                assert source["secretRef"]["name"] in offered
        for variable in pod["containers"][0].get("env", []):
            if "valueFrom" in variable:
                assert variable["valueFrom"]["secretKeyRef"]["name"] in offered


def deployments_of(manifests: list[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    return list(of_kind(manifests, "Deployment").items())


def test_no_secret_is_a_manifest(manifests: list[dict[str, Any]]) -> None:
    assert not of_kind(manifests, "Secret")


def test_the_servers_network(manifests: list[dict[str, Any]]) -> None:
    spec = of_kind(manifests, "NetworkPolicy")["server"]["spec"]
    assert set(spec["policyTypes"]) == {"Ingress", "Egress"}
    (ingress,) = spec["ingress"]
    assert ingress["ports"] == [{"port": pods(manifests)["server"]["containers"][0]["ports"][0]["containerPort"]}]
    assert ingress["from"][0]["podSelector"]["matchLabels"] == {"xdub/client": "true"}
    assert {port["port"] for rule in spec["egress"] for port in rule["ports"]} == {53, 5000, 5432}


def test_the_settings_resolve(manifests: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    from xdub_platform.settings import load_settings

    for name, value in of_kind(manifests, "ConfigMap")["xdub-settings"]["data"].items():
        monkeypatch.setenv(name, value)
    settings = load_settings()
    assert settings.profile == "cluster"
    assert settings.processes.launcher == "kubernetes"
    assert settings.processes.device == "cuda"
    version = distribution("xdub-platform").version
    assert settings.kubernetes.worker_image == f"registry.example.com/xdub/worker:{version}"
    (service,) = of_kind(manifests, "Service")["mlflow"]["spec"]["ports"]
    assert settings.mlflow.tracking_uri == f"http://mlflow:{service['port']}"


def test_probes_are_pages_of_the_server(manifests: list[dict[str, Any]], deploy: Any) -> None:
    app = (deploy.repository / "xdub_platform" / "serving" / "app.py").read_text(encoding="utf-8")
    container = pods(manifests)["server"]["containers"][0]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert f'@app.get("{container[probe]["httpGet"]["path"]}"' in app


def test_yaml_has_no_key_twice(deploy: Any) -> None:
    """PyYAML keeps the last of two equal keys in silence; Kubernetes refuses the file."""

    class Strict(yaml.SafeLoader):
        pass

    def mapping(loader: Strict, node: yaml.MappingNode) -> dict[str, Any]:
        keys = [key.value for key, _ in node.value if key.value != "<<"]
        assert len(keys) == len(set(keys)), f"{node.start_mark}: {keys}"
        return yaml.SafeLoader.construct_mapping(loader, node, deep=True)

    Strict.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    for path in deploy.folder.rglob("*.yaml"):
        assert list(yaml.load_all(path.read_text(encoding="utf-8"), Strict))
