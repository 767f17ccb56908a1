"""deploy/kubernetes: the same commands as docker-compose.yml, and manifests that Kubernetes takes."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from service.settings import Settings
from tests.command_lines import parse
from tests.service.test_compose import SERVICES

FOLDER = Path(__file__).parents[2] / "deploy" / "kubernetes"
KUSTOMIZATION = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
MANIFESTS: list[dict[str, Any]] = [
    manifest for name in KUSTOMIZATION["resources"] for manifest in yaml.safe_load_all((FOLDER / name).read_text())
]
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
    literals = dict(line.split("=", 1) for line in KUSTOMIZATION["configMapGenerator"][0]["literals"])
    assert all(variable.removeprefix("LOP_").lower() in Settings.model_fields for variable in literals)
    compose = SERVICES["server"]["environment"]
    assert literals == {variable: compose[variable] for variable in literals}


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
