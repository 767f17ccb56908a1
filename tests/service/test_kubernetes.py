"""deploy/kubernetes: the same commands as docker-compose.yml, and manifests that Kubernetes takes."""

import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from documentation.settings_page import READ_ELSEWHERE, service_variables
from service.settings import Settings
from tests.command_lines import parse
from tests.service.test_compose import SERVICES

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "kubernetes"
KUSTOMIZATION = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
MANIFESTS: list[dict[str, Any]] = [
    manifest for name in KUSTOMIZATION["resources"] for manifest in yaml.safe_load_all((FOLDER / name).read_text())
]
SETTINGS = dict(line.split("=", 1) for line in KUSTOMIZATION["configMapGenerator"][0]["literals"])
PODS = {
    manifest["metadata"]["name"].removeprefix("lop-"): manifest["spec"]["template"]
    for manifest in MANIFESTS
    if "template" in manifest.get("spec", {})
}


def test_every_file_is_a_part() -> None:
    assert {path.name for path in FOLDER.iterdir()} == {*KUSTOMIZATION["resources"], "kustomization.yaml"}


@pytest.mark.parametrize("name", ["migrate", "server", "worker"])
def test_commands_and_settings_are_those_of_compose(name: str) -> None:
    [container] = PODS[name]["spec"]["containers"]
    assert container["command"] == SERVICES[name]["command"]
    parse(container["command"])
    assert set(SETTINGS) <= {variable.name for variable in service_variables()} | set(READ_ELSEWHERE)
    compose = SERVICES["server"]["environment"]
    assert {variable: compose[variable] for variable in SETTINGS} == SETTINGS


@pytest.mark.parametrize("name", ["server", "worker"])
def test_pods_of_a_new_version_wait_for_its_schema(name: str) -> None:
    [first], [container] = PODS[name]["spec"]["initContainers"], PODS[name]["spec"]["containers"]
    assert first["command"] == ["lop", "db", "wait"]
    parse(first["command"])
    same = ("image", "envFrom", "securityContext")
    assert {key: first[key] for key in same} == {key: container[key] for key in same}


def test_the_image_is_one_of_a_registry_of_this_version() -> None:
    """A name without a registry is one of Docker's, where anybody could have put an image of that name."""
    [image] = KUSTOMIZATION["images"]
    assert {container["image"] for pod in PODS.values() for container in pod["spec"]["containers"]} == {image["name"]}
    assert "." in image["newName"].partition("/")[0]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert image["newTag"] == project["version"]


@pytest.mark.parametrize("name", PODS)
def test_pods_may_do_little_and_know_no_secret(name: str) -> None:
    pod = PODS[name]["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    [container] = pod["containers"]
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert {"secretRef": {"name": "lop-database"}} in container["envFrom"]
    assert not any(manifest["kind"] == "Secret" for manifest in MANIFESTS)
    claims = {manifest["metadata"]["name"] for manifest in MANIFESTS if manifest["kind"] == "PersistentVolumeClaim"}
    volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
    assert {mount["name"] for mount in container.get("volumeMounts", [])} == set(volumes)
    asked = {x["persistentVolumeClaim"]["claimName"] for x in volumes.values() if "persistentVolumeClaim" in x}
    assert asked <= claims


@pytest.mark.parametrize("name", PODS)
def test_no_service_of_the_cluster_becomes_a_setting(name: str) -> None:
    """Kubernetes gives every pod variables of the Services that are there: of `lop`, LOP_PORT, among others."""
    services = [manifest["metadata"]["name"] for manifest in MANIFESTS if manifest["kind"] == "Service"]
    given = {f"{service.upper().replace('-', '_')}_{end}" for service in services for end in ("PORT", "SERVICE_HOST")}
    assert given & {variable.name for variable in service_variables()}  # else the next line would be of no use
    assert PODS[name]["spec"]["enableServiceLinks"] is False


def test_what_a_worker_writes_is_in_volumes_that_all_workers_share() -> None:
    pod = PODS["worker"]["spec"]
    [container] = pod["containers"]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume.get("persistentVolumeClaim", {}).get("claimName") for volume in pod["volumes"]}
    modes = {x["metadata"]["name"]: x["spec"]["accessModes"] for x in MANIFESTS if "accessModes" in x.get("spec", {})}
    written = [SETTINGS[name] for name in ("LOP_DATA_STORE", "LOP_OUTPUT_ROOT", "LOP_SECOND_ORDER")]
    assert [modes[volumes[mounts[folder]]] for folder in written] == [["ReadWriteMany"]] * 3
    assert [folder for folder in SETTINGS.values() if folder.startswith("/") and folder not in mounts] == []


@pytest.mark.parametrize("name", ["server", "worker"])
def test_prometheus_is_told_where_to_ask(name: str) -> None:
    [container] = PODS[name]["spec"]["containers"]
    options = parse(container["command"])
    port = options["port"] if name == "server" else options["metrics_port"]
    assert PODS[name]["metadata"]["annotations"]["prometheus.io/port"] == str(port)
    assert [x["containerPort"] for x in container["ports"]] == [port]


def test_a_server_has_time_to_stop() -> None:
    pod = PODS["server"]["spec"]
    pause = int(pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > pause + Settings(database_url="sqlite:///x.db").shutdown_seconds


@pytest.mark.skipif(find_spec("kubernetes_validate") is None, reason="needs the schema: `make test-page`")
@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda x: f"{x['kind']}-{x['metadata']['name']}")
def test_kubernetes_takes_them(manifest: dict[str, Any]) -> None:
    import kubernetes_validate

    kubernetes_validate.validate(manifest, "1.31", strict=True)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(manifest | {"spce": {}}, "1.31", strict=True)
