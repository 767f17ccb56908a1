"""No Docker engine here: what docker-compose.yml and the Dockerfile say is checked, and their commands are run."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml  # type: ignore[import-untyped]
from fastapi.testclient import TestClient

from service.app import create_app
from service.keys import new_key
from service.settings import Settings
from storage.contract import Repository
from storage.records import JobStatus, KeyScope, NewJob
from storage.sql_repository import open_repository
from tests.command_lines import parse
from tests.postgres import PostgresServer, postgres_server
from tests.service.made_up import register_model

__all__ = ["postgres_server"]

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]


def command_of(service: str) -> list[str]:
    """A service's command, which is a list of words."""
    command: list[str] = SERVICES[service]["command"]
    assert all(isinstance(word, str) for word in command)
    return command


def image_command() -> list[str]:
    """The CMD of the image."""
    words: list[str] = json.loads(re.findall(r"^CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)[-1])
    return words


def health_command() -> list[str]:
    """The HEALTHCHECK of the image."""
    words: list[str] = json.loads(re.findall(r"^\s+CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)[0])
    return words


def test_every_command_is_one_that_lop_has() -> None:
    commands = {name: service["command"] for name, service in SERVICES.items() if "command" in service}
    assert set(commands) == {"migrate", "server", "worker"}
    for name in commands:
        parse(command_of(name))
    assert command_of("migrate") == ["lop", "db", "upgrade"]
    served = parse(command_of("server"))
    assert (served["host"], served["port"], served["store"]) == ("0.0.0.0", 8000, None)
    assert parse(command_of("worker"))["poll_seconds"] == 5
    assert parse(image_command())["host"] == "0.0.0.0"


def test_the_image_has_what_its_workers_and_settings_need() -> None:
    installed = set(re.findall(r"'\.\[([a-z,-]+)\]'", DOCKERFILE)[0].split(","))
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for _ in range(len(extras)):  # what extras are made of, to the end
        for extra in installed & extras.keys():
            for requirement in extras[extra]:
                if (of_ours := re.match(r"lop-service\[([a-z,-]+)\]", requirement)) is not None:
                    installed = installed | set(of_ours[1].split(","))
    # Searches and servers; LoRA of recover jobs; weights in few bits of apply jobs; S3 and traces, by settings.
    assert {"search", "server", "postgres", "recover", "quantise", "store", "otel"} <= installed


def test_no_secret_has_a_default() -> None:
    for service in SERVICES.values():
        assert all(re.fullmatch(r"\$\{LOP_METRICS_KEY_FILE:\?[^}]+\}", x["file"]) for x in COMPOSE["secrets"].values())
        for name, value in service.get("environment", {}).items():
            if "PASSWORD" in name:
                assert re.fullmatch(r"\$\{LOP_DB_PASSWORD:\?[^}]+\}", value)
            else:
                assert "://lop:" not in value


def test_who_waits_for_whom() -> None:
    assert "pg_isready" in SERVICES["db"]["healthcheck"]["test"][1]
    assert SERVICES["migrate"]["depends_on"] == {"db": {"condition": "service_healthy"}}
    for name in ("server", "worker"):
        assert SERVICES[name]["depends_on"]["migrate"] == {"condition": "service_completed_successfully"}
    assert SERVICES["migrate"]["restart"] == "no"
    assert all(port.startswith("127.0.0.1:") for name in ("proxy", "prometheus") for port in SERVICES[name]["ports"])
    assert [name for name, service in SERVICES.items() if "ports" in service] == ["proxy", "prometheus"]
    volumes = [volume for name in ("db", "server", "worker", "prometheus") for volume in SERVICES[name]["volumes"]]
    assert {volume.partition(":")[0] for volume in volumes} >= set(COMPOSE["volumes"])
    assert [v for v in SERVICES["server"]["volumes"] if v in SERVICES["worker"]["volumes"]] == ["data:/home/lop/data"]


def test_what_workers_write_is_in_volumes_that_the_image_gives_to_its_user() -> None:
    """A named volume begins as the image's folder at its place: without one it is root's."""
    folders = {value for name, value in SERVICES["worker"]["environment"].items() if value.startswith("/home/lop/")}
    mounts = dict(volume.split(":")[1::-1] for volume in SERVICES["worker"]["volumes"] if volume[0] != "$")
    assert {"/home/lop/data", "/home/lop/output", "/home/lop/second-order"} == folders
    assert {mounts[folder] for folder in folders} <= set(COMPOSE["volumes"])
    [made] = re.findall(r"mkdir ((?:/home/lop/\S+ ?)+)", DOCKERFILE)
    assert set(made.split()) == folders
    assert "chown lop:lop /home/lop/*" in DOCKERFILE


def test_two_servers_behind_one_proxy_that_is_asked_for_their_own_figures() -> None:
    proxy = (ROOT / "deploy" / "nginx.conf").read_text()
    prometheus = yaml.safe_load((ROOT / "deploy" / "prometheus.yml").read_text())
    port = parse(command_of("server"))["port"]
    assert SERVICES["server"]["deploy"]["replicas"] == 2
    assert f"server server:{port} resolve" in proxy
    assert proxy.count("{") == proxy.count("}")
    assert re.search(r"location = /metrics \{\s+return 404;", proxy)
    scrape, of_workers = prometheus["scrape_configs"]
    assert scrape["dns_sd_configs"][0]["names"] == ["server"]
    assert scrape["dns_sd_configs"][0]["port"] == port
    assert scrape["authorization"]["credentials_file"] == f"/run/secrets/{SERVICES['prometheus']['secrets'][0]}"
    assert of_workers["dns_sd_configs"][0]["names"] == ["worker"]
    worker = parse(command_of("worker"))
    assert (worker["metrics_host"], worker["metrics_port"]) == ("0.0.0.0", of_workers["dns_sd_configs"][0]["port"])
    mounts = [volume for name in ("proxy", "prometheus") for volume in SERVICES[name]["volumes"] if volume[0] == "."]
    assert all((ROOT / mount.partition(":")[0]).is_file() for mount in mounts)


def test_alerts_are_of_figures_that_there_are(settings: Settings, repository: Repository) -> None:
    """No Prometheus here: what the rules ask for is held against what a server tells."""
    prometheus = yaml.safe_load((ROOT / "deploy" / "prometheus.yml").read_text())
    assert prometheus["rule_files"] == ["alerts.yml"]
    assert "./deploy/alerts.yml:/etc/prometheus/alerts.yml:ro" in SERVICES["prometheus"]["volumes"]
    [group] = yaml.safe_load((ROOT / "deploy" / "alerts.yml").read_text())["groups"]
    repository.add_job(NewJob("search", "tiny", {"sparsities": [0.5]}, "somebody"))
    with TestClient(create_app(settings)) as client:
        client.get("/healthz")
        told = client.get("/metrics").text
    labels = {name: set(re.findall(r"(\w+)=", own)) for name, own in re.findall(r"^(lop_\w+)\{([^}]*)\}", told, re.M)}
    jobs = {scrape["job_name"] for scrape in prometheus["scrape_configs"]}
    for rule in group["rules"]:
        assert set(re.findall(r'\bup\{job="([\w-]+)"', rule["expr"])) <= jobs
        for name in re.findall(r"\blop_\w+", rule["expr"]):
            assert re.search(rf"^{name}[ {{]", told, re.M), name
        for name, asked in re.findall(r"\b(lop_\w+)\{(\w+)=", rule["expr"]):
            assert asked in labels[name]
        for status in re.findall(r'lop_jobs\{status="(\w+)"', rule["expr"]):
            assert status in set(JobStatus)
        for word in ("(", "{", "["):
            assert rule["expr"].count(word) == rule["expr"].count({"(": ")", "{": "}", "[": "]"}[word])
    [missing] = [rule["expr"] for rule in group["rules"] if rule["alert"] == "ServersDoNotAnswer"]
    assert missing.endswith(f"< {SERVICES['server']['deploy']['replicas']}")


def test_logs_do_not_grow_for_ever() -> None:
    assert all(service["logging"]["options"]["max-file"] for service in SERVICES.values())


def test_the_image_holds_every_package_and_no_root_process() -> None:
    copied = set(re.findall(r"^COPY (\w+) \1$", DOCKERFILE, re.MULTILINE))
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests", "benchmarks", "documentation"}
    assert copied == packages
    assert re.search(r"^USER (?!root)\w+$", DOCKERFILE, re.MULTILINE)
    assert "-c constraints.txt" in DOCKERFILE
    [files] = re.findall(r"^COPY (.*) \./$", DOCKERFILE, re.MULTILINE)
    assert all((ROOT / name).is_file() for name in files.split())


@contextmanager
def running(command: list[str], environment: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A command of the compose file as a process; killed at the end if it still runs."""
    program = shutil.which("lop", path=str(Path(sys.executable).parent))
    assert program is not None, "the `lop` command is installed beside this interpreter"
    with log.open("wb") as output:
        process = subprocess.Popen([program, *command[1:]], env=environment, stdout=output, stderr=output)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def environment(postgres_server: PostgresServer, tmp_path: Path) -> Iterator[dict[str, str]]:
    """What compose gives the containers, with the database of this test instead of `db`."""
    name = postgres_server.create_database(migrated=False)
    given = dict(SERVICES["server"]["environment"])
    own = {"LOP_LOG_FORMAT": "json", "FORWARDED_ALLOW_IPS": "*"}
    shared = SERVICES["worker"]["environment"]
    assert given == shared | own
    assert shared == SERVICES["migrate"]["environment"]
    given = dict(shared)
    assert given.pop("LOP_DATABASE_URL") == "postgresql://lop@db:5432/${LOP_DB_NAME:-lop}"
    yield os.environ | dict.fromkeys(given, "any") | {"LOP_DATABASE_URL": postgres_server.url(name)}
    postgres_server.drop_database(name)


def test_the_commands_work_together(environment: dict[str, str], tmp_path: Path) -> None:
    url = environment["LOP_DATABASE_URL"]
    with running(command_of("migrate"), environment, tmp_path / "migrate.log") as migrate:
        assert migrate.wait(120) == 0, (tmp_path / "migrate.log").read_text()
    with open_repository(url) as repository:
        register_model(repository)
        queued, _ = repository.add_job(NewJob("search", "tiny", {"sparsities": [0.5]}, "somebody"))
        record, key = new_key("test", KeyScope.PLAN)
        repository.add_key(record)
        log = tmp_path / "server.log"
        # The compose file's command, but for a port that is surely free.
        command = ["0" if word == "8000" else word for word in command_of("server")]
        with (
            running(command, environment, log) as server,
            running(command_of("worker"), environment, tmp_path / "worker.log") as worker,
        ):
            while (found := re.search(r"listening on http://0\.0\.0\.0:(\d+)", log.read_text())) is None:
                assert server.poll() is None, log.read_text()
                time.sleep(0.05)
            assert "no key" not in log.read_text()
            subprocess.run(
                [sys.executable, *health_command()[1:]], env=environment | {"LOP_PORT": found[1]}, check=True
            )
            headers = {"Authorization": f"Bearer {key}"}
            with httpx.Client(base_url=f"http://127.0.0.1:{found[1]}", timeout=60, headers=headers) as client:
                assert client.get("/readyz").json() == {"status": "ready"}
                assert client.post("/v1/plans", json={"model": "tiny", "sparsity": 0.5}).status_code == 201
            # The job lacks what a search needs: that the worker says so shows that it claimed it.
            while not repository.get_job(queued.id).status.is_final:
                assert worker.poll() is None, (tmp_path / "worker.log").read_text()
                time.sleep(0.05)
            ended = repository.get_job(queued.id)
            assert (ended.status, "a kind that this version knows" in str(ended.error)) == (JobStatus.FAILED, True)
            for process in (server, worker):
                process.send_signal(signal.SIGTERM)
            assert server.wait(60) == 0, log.read_text()
            assert worker.wait(60) == 0, (tmp_path / "worker.log").read_text()
    failed = subprocess.run(
        [sys.executable, *health_command()[1:]], env=environment | {"LOP_PORT": found[1]}, capture_output=True
    )
    assert failed.returncode != 0
