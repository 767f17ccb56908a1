"""Reads the commands of a shell block without running them: each by whatever knows its words."""

import re
import tomllib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from documentation.settings_page import READ_ELSEWHERE, command_variables, service_variables
from lop.console.quantities import parse_bytes, parse_milliseconds, parse_operations
from tests.command_lines import parse
from tests.documentation.blocks import ROOT, Command

VARIABLES = {variable.name for variable in [*service_variables(), *command_variables()]} | set(READ_ELSEWHERE)
OF_OTHERS = {"LOP_DB_PASSWORD", "LOP_METRICS_KEY_FILE", "PGPASSWORD"}
"""Variables of docker-compose.yml and of PostgreSQL."""

QUANTITIES: dict[str, Callable[[str], object]] = {
    "memory": parse_bytes,
    "disk": parse_bytes,
    "latency": parse_milliseconds,
    "flops": parse_operations,
}
"""Options that the command itself reads."""

KUBERNETES = "deploy/kubernetes"
"""The manifests, from the root of the repository."""

SCHEMA: dict[str, Any] = {}


def check_command(command: Command) -> None:
    """Fails if the command could not be typed: an unknown option, a value of another type, a file that is not there."""
    for name in command.variables:
        check_variable(name)
    if command.words:
        program = Path(command.words[0]).name
        assert program in _CHECKS, f"no test knows how to read {program}"
        _CHECKS[program](command.words[1:])


def check_variable(name: str) -> None:
    """Fails if nothing reads the variable."""
    ours = name in VARIABLES or name in OF_OTHERS
    assert ours or name.startswith("OTEL_"), f"nothing reads {name}"


def _lop(words: list[str]) -> None:
    for name, value in parse(["lop", *words]).items():
        if name in QUANTITIES and isinstance(value, str):
            QUANTITIES[name](value)


def _pip(words: list[str]) -> None:
    assert words[0] == "install"
    for word in words[1:]:
        if found := re.fullmatch(r"(?P<package>[\w./-]+)\[(?P<extras>[\w,-]+)\]", word):
            folder = "." if found["package"] == "lop-service" else found["package"]
            extras = tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["project"]["optional-dependencies"]
            unknown = set(found["extras"].split(",")) - set(extras)
            assert not unknown, f"{found['package']} has no extra {', '.join(unknown)}"
        else:
            assert word in ("-c", "-e", "lop-service") or (ROOT / word).exists(), word


def _python(words: list[str]) -> None:
    assert words[0] == "-m"
    assert words[1] == "venv" or find_spec(words[1]) is not None, f"there is no module {words[1]}"


def _make(words: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for word in words:
        assert "=" in word or re.search(rf"^{re.escape(word)}:", makefile, re.MULTILINE), f"make knows no {word}"


def _docker(words: list[str]) -> None:
    """Of the compose file, and of the image under the name that the manifests of Kubernetes have for it."""
    if words[0] in ("build", "push"):
        [image] = yaml.safe_load((ROOT / KUBERNETES / "kustomization.yaml").read_text())["images"]
        name = f"{image['newName']}:{image['newTag']}"
        assert words in (["build", "--tag", name, "."], ["push", name]), f"the manifests name {name}"
        return
    if words[0] == "tag":
        compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
        assert words[1] == compose["services"]["server"]["image"], f"docker-compose.yml has no image {words[1]}"
        return
    assert words[0] == "compose"
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    if words[1] == "run":
        assert words[2] == "--rm"
        assert words[3] in services, f"docker-compose.yml has no {words[3]}"
        check_command(Command({}, words[4:]))
    elif words[1] in ("exec", "stop", "cp"):
        named = words[2].partition(":")[0]
        assert named in services, f"docker-compose.yml has no {named}"
        if words[1] == "exec" and words[3] == "lop":
            check_command(Command({}, words[3:]))
    else:
        assert words[1:] in (["up"], ["up", "--detach"], ["build"])


def _kubectl(words: list[str]) -> None:
    """What is named as `kind/name` is in a manifest, and what is run in a pod is a command of ours."""
    words, inner = split_inner(words)
    if words[:2] == ["-n", "lop"]:
        words = words[2:]
    assert words[0] in ("apply", "create", "delete", "exec", "port-forward", "rollout", "scale", "wait"), (
        f"kubectl {words[0]}"
    )
    assert (words[0] == "exec") is bool(inner), "a command for a pod stands after --"
    if inner:
        check_command(Command({}, inner))
    manifests = [x for path in (ROOT / KUBERNETES).glob("*.yaml") for x in yaml.safe_load_all(path.read_text())]
    known = {f"{x['kind'].lower()}/{x['metadata']['name']}" for x in manifests if "metadata" in x}
    for word in words:
        if re.fullmatch(r"[a-z]+/[a-z-]+", word) and word != KUBERNETES:
            assert word in known, f"no manifest has {word}"
        if word.startswith("--from-literal="):
            check_variable(word.removeprefix("--from-literal=").partition("=")[0])
    if "-k" in words:
        assert (ROOT / words[words.index("-k") + 1] / "kustomization.yaml").is_file()


def split_inner(words: list[str]) -> tuple[list[str], list[str]]:
    """The words before `--`, and those after it."""
    count = words.index("--") if "--" in words else len(words)
    return words[:count], words[count + 1 :]


def _curl(words: list[str]) -> None:
    request = read_curl(words)
    paths = openapi()["paths"]
    known = [path for path in paths if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", path), request.path)]
    assert known, f"the server has no {request.path}"
    assert any(request.method.lower() in paths[path] for path in known), f"{request.path} takes no {request.method}"


class Curl:
    """What a `curl` command asks for; `file` is that of `--data-binary @FILE`."""

    def __init__(self) -> None:
        self.method = "GET"
        self.url = ""
        self.headers: dict[str, str] = {}
        self.body: str | None = None
        self.file: str | None = None

    @property
    def path(self) -> str:
        """Of the URL, without its query."""
        found = re.fullmatch(r"(?:http://)?(?:localhost|127\.0\.0\.1):8000(/[^?]*)(?:\?.*)?", self.url)
        assert found, f"{self.url} is no address of `lop serve`"
        return found[1]


def read_curl(words: list[str]) -> Curl:
    """The request; fails for options that curl may have and this test does not know."""
    curl, rest = Curl(), list(words)
    while rest:
        match rest.pop(0):
            case "-i" | "-s" | "-N":
                pass
            case "-X":
                curl.method = rest.pop(0)
            case "-H":
                name, _, value = rest.pop(0).partition(": ")
                curl.headers[name] = value
            case "-d":
                curl.body = rest.pop(0)
            case "--data-binary":
                curl.file = rest.pop(0).removeprefix("@")
            case word:
                assert not word.startswith("-"), f"an option that this test does not know: {word}"
                curl.url = word
    return curl


def openapi() -> dict[str, Any]:
    """The document of the server's API, made once."""
    if not SCHEMA:
        from documentation.http_page import openapi_document

        SCHEMA.update(openapi_document())
    return SCHEMA


def _accelerate(words: list[str]) -> None:
    from accelerate.commands.launch import launch_command_parser

    assert words[0] == "launch"
    launch = launch_command_parser().parse_args(words[1:])
    assert (launch.module, launch.training_script) == (True, "lop.cli")
    _lop(launch.training_script_args)


def _foreign(words: list[str]) -> None:
    """A program that is not ours and not here: its words are not read."""


_CHECKS: dict[str, Callable[[list[str]], None]] = {
    "lop": _lop,
    "pip": _pip,
    "python": _python,
    "make": _make,
    "docker": _docker,
    "kubectl": _kubectl,
    "curl": _curl,
    "accelerate": _accelerate,
    "ollama": _foreign,
    "vllm": _foreign,
    "zip": _foreign,
}
