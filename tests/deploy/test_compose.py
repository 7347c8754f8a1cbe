"""The compose file: strictly parsed, and what we ask of every service."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import compose_spec
import pytest
import yaml

VALUES = {"POSTGRES_PASSWORD": "p1", "S3_ACCESS_KEY": "k1", "S3_SECRET_KEY": "s1"}
SERVICES = {"postgres", "s3", "s3-bucket", "mlflow", "code-location", "webserver", "daemon", "server"}
ONE_SHOT = {"s3-bucket"}
OURS = SERVICES - {"postgres", "s3"}


def strictly_parsed(specification: dict[str, Any]) -> None:
    """Unknown keys and values raise ValueError."""
    compose_spec.PyCompose.from_yaml(yaml.safe_dump(specification)).to_dict()


@pytest.fixture
def specification(deploy: Any) -> dict[str, Any]:
    return yaml.safe_load(deploy.interpolated(deploy.text("compose.yaml"), VALUES))


@pytest.mark.parametrize("name", ["compose.yaml", "compose.gpu.yaml"])
def test_the_schema_holds(deploy: Any, name: str) -> None:
    strictly_parsed(yaml.safe_load(deploy.interpolated(deploy.text(name), VALUES)))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("services", "daemon", "restrat"), "always"),
        (("services", "daemon", "restart"), "sometimes"),
        (("services", "daemon", "healthcheck", "intervall"), "10s"),
        (("services", "server", "depends_on", "mlflow", "condition"), "service_helthy"),
    ],
)
def test_the_schema_is_strict(specification: dict[str, Any], path: tuple[str, ...], value: str) -> None:
    place = specification
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    with pytest.raises(ValueError, match=r".+"):
        strictly_parsed(specification)


@pytest.mark.parametrize("missing", sorted(VALUES))
def test_it_refuses_to_start_without_a_secret(deploy: Any, missing: str) -> None:
    with pytest.raises(KeyError, match=missing):
        deploy.interpolated(deploy.text("compose.yaml"), {**VALUES, missing: ""})


def test_services_and_names(specification: dict[str, Any]) -> None:
    assert set(specification["services"]) == SERVICES
    assert specification["name"] == "xdub"


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_every_service(specification: dict[str, Any], name: str) -> None:
    service = specification["services"][name]
    assert service["restart"] == ("no" if name in ONE_SHOT else "unless-stopped")
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["mem_limit"]
    image, _, tag = service["image"].rpartition(":")
    assert image
    assert tag not in ("", "latest")
    assert "privileged" not in service
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    if name in ONE_SHOT:
        assert service["healthcheck"] == {"disable": True}
    else:
        assert {"test", "interval", "timeout", "retries"} <= set(service["healthcheck"])
    if name in OURS:
        assert service["cap_drop"] == ["ALL"]
        assert "user" not in service, "the image's user holds"


def test_order_and_volumes(specification: dict[str, Any]) -> None:
    services = specification["services"]
    for service in services.values():
        for other, how in service.get("depends_on", {}).items():
            wanted = "service_completed_successfully" if other in ONE_SHOT else "service_healthy"
            assert how == {"condition": wanted}
    used = {volume.split(":")[0] for service in services.values() for volume in service.get("volumes", [])}
    assert used == set(specification["volumes"])
    configured = {each["source"] for service in services.values() for each in service.get("configs", [])}
    assert configured == set(specification["configs"])


def test_downloads_lie_on_a_volume(specification: dict[str, Any]) -> None:
    for name in ("code-location", "server"):
        service = specification["services"][name]
        state = service["environment"]["XDUB_STATE_ROOT"]
        assert service["environment"]["HF_HOME"] == f"{state}/cache/huggingface"
        assert [volume.split(":")[1] for volume in service["volumes"]] == [state]


def test_targets_exist(deploy: Any, specification: dict[str, Any]) -> None:
    for name in OURS:
        build = specification["services"][name]["build"]
        assert f"AS {build['target']}\n" in deploy.text("Dockerfile")
        assert (deploy.folder / build["context"]).resolve() == deploy.repository
        assert (deploy.repository / build["dockerfile"]).is_file()
        assert specification["services"][name]["image"].startswith(f"xdub/{build['target']}:")


def test_a_new_container_knows_the_runs_of_the_one_before(specification: dict[str, Any]) -> None:
    assert specification["services"]["code-location"]["hostname"] == "code-location"


def test_the_settings_resolve(specification: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from xdub_platform.instance import instance_config
    from xdub_platform.settings import load_settings

    for name in ("code-location", "webserver", "daemon", "server"):
        for variable, value in specification["services"][name]["environment"].items():
            monkeypatch.setenv(variable, str(value))
        settings = load_settings()
        assert settings.database.url == "postgresql+psycopg2://xdub:p1@postgres:5432/xdub"
        assert instance_config(settings)["storage"] == {"postgres": {"postgres_url": {"env": "XDUB_DATABASE__URL"}}}
        assert settings.processes.launcher == "local"
        assert settings.path("dagster") == Path("/state/dagster")


def test_addresses_are_services(specification: dict[str, Any]) -> None:
    """Every host in an address or a --grpc-host is a service, and the port one on which it listens."""
    services = specification["services"]
    environment = services["webserver"]["environment"]
    assert environment["XDUB_MLFLOW__TRACKING_URI"] == "http://mlflow:5000"
    assert "--port=5000" in services["mlflow"]["command"]
    assert "mlflow:5000" in next(each for each in services["mlflow"]["command"] if "allowed-hosts" in each)
    assert environment["XDUB_STORE__S3_ENDPOINT"] == "http://s3:8333"
    assert "-s3.port=8333" in services["s3"]["command"]
    for name in ("webserver", "daemon"):
        command = services[name]["command"]
        assert command[command.index("--grpc-host") + 1] == "code-location"
        assert command[command.index("--grpc-port") + 1] == services["code-location"]["healthcheck"]["test"][-1]
