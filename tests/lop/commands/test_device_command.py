"""`lop device`: this machine measured with the tiny model's layers, in a database and over HTTP."""

import json
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

import lop
from lop.cli import main
from lop.workflows import devices as lop_devices
from lop.workflows.devices import ServerDevices, find_profile
from lop.workflows.profiling import TimedModel, measure_machine
from pruning.devices.catalogue import DEVICES
from pruning.devices.timing import machine
from pruning.devices.timing.profiling import ProfileSettings
from pruning.errors import ConflictError, DatasetError, InputError, NotFoundError
from service.app import create_app
from service.settings import Settings
from storage.records import DeviceRecord
from storage.sql_repository import open_repository
from tests.lop.app_transport import AppTransport
from tests.pruning.made_up_devices import made_up_profile

Run = Callable[..., tuple[int, str, str]]

SHORT = ("--prompt-tokens", "6", "--prompt-tokens", "12", "--output-tokens", "4", "--seconds", "0")
SETTINGS = ProfileSettings(prompt_tokens=(6, 12), output_tokens=4, seconds=0.0, min_rounds=1)


@pytest.fixture(autouse=True)
def _small_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_MATRIX_BYTES", 2**16)
    monkeypatch.setattr(machine, "_REPEATS", 1)
    monkeypatch.setenv("LOP_TORCH_DEVICE", "cpu")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], database: str) -> Run:
    """Run `lop device ARGUMENTS` on the test's database; returns exit code, stdout, stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setenv("LOP_DATABASE_URL", database)
        monkeypatch.setattr(sys, "argv", ["lop", "device", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as error:
            code = int(error.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def client(database: str) -> Iterator[lop.Client]:
    with lop.Client("http://lop.test", transport=AppTransport(create_app(Settings(database_url=database)))) as client:
        yield client


def test_a_machine_is_measured_listed_and_shown(run: Run, database: str) -> None:
    code, out, err = run("profile", "bench", "--model", "tiny", "--name", "Test bench", *SHORT, "--json")
    assert code == 0, err
    assert "timing 10 layers, 0 MiB of random weights" in err  # 8 channels to warm up, 3 rungs of groups, 6 of widths
    profile = json.loads(out)
    assert (profile["id"], profile["name"], profile["kind"]) == ("bench", "Test bench", "cpu")
    assert profile["layers"][0]["prompt_tokens"] == [6, 12, 16]
    assert profile["outside"][0]["vision_ms"] > 0
    with open_repository(database) as repository:
        assert repository.get_device("bench").profile.model_dump(mode="json") == profile
    listed = json.loads(run("list", "--json")[1])
    assert [row["id"] for row in listed] == [*DEVICES, "bench"]
    assert [row["id"] for row in listed if row["measured"]] == ["bench"]
    assert json.loads(run("show", "bench", "--json")[1])["profile"] == profile
    code, out, err = run("show", "bench")
    assert code == 0
    assert "Test bench" in out
    assert "decode at 17" in out
    assert "no FFN" in out
    assert "not timed" not in out


@pytest.mark.parametrize(("drift", "said"), [(0.2, "20% longer"), (-0.06, "6% less"), (0.04, None), (None, None)])
def test_a_machine_that_was_not_steady_is_told(
    run: Run, monkeypatch: pytest.MonkeyPatch, drift: float | None, said: str | None
) -> None:
    profile = made_up_profile("bench")
    layers = tuple(table.model_copy(update={"drift": drift}) for table in profile.layers)
    found = profile.model_copy(update={"layers": layers})
    monkeypatch.setattr("pruning.devices.timing.profiling.profile_device", lambda *_, **__: found)
    code, out, err = run("profile", "bench", "--model", "tiny", "--json")
    assert code == 0
    assert json.loads(out)["layers"][0].get("drift") == drift
    assert err.count("must be steady") == (len(layers) if said else 0)
    assert said is None or f"later rounds took {said} than earlier ones" in " ".join(err.split())


def test_a_profile_from_before_attention_was_timed_says_so(run: Run, database: str) -> None:
    with open_repository(database) as repository:
        repository.add_device(DeviceRecord(made_up_profile("bench"), datetime.now(UTC)))
    code, out, _ = run("show", "bench")
    assert code == 0
    assert "decode at 31" in out
    assert "layers without an FFN were not timed: measure again with `lop device profile bench`" in " ".join(
        out.split()
    )


def test_the_catalogue_is_shown(run: Run) -> None:
    code, out, _ = run("list")
    assert code == 0
    assert "jetson-agx-thor-128gb" in out
    code, out, _ = run("show", "l4")
    assert code == 0
    assert "TFLOP/s: F32 30.3, F16 121, BF16 121" in out
    assert "figures: NVIDIA L4 Tensor Core GPU data sheet" in out
    code, _, err = run("show", "toaster")
    assert (code, "Known devices" in err) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("bench",), "--model ID or of --checkpoint FOLDER"),
        (("bench", "--model", "tiny", "--checkpoint", "."), "--model ID or of --checkpoint FOLDER"),
        (("bench", "--model", "tiny", "--url", "http://x"), "Give --checkpoint FOLDER"),
        (("bench", "--checkpoint", ".", "--url", "http://x", "--database", "y"), "a server or of a database"),
        (("bench", "--model", "huge"), "'huge'"),
        (("bench", "--checkpoint", "."), "config.json"),
        (("l4", "--model", "tiny", *SHORT), "must not be one of the catalogue"),
        (("a/b", "--model", "tiny", *SHORT), "letters, digits"),
        (("bench", "--model", "tiny", "--batch", "0"), "batch"),
    ],
)
def test_what_cannot_be_measured_is_told_first(
    run: Run, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], error: str
) -> None:
    monkeypatch.setattr("pruning.devices.timing.profiling.profile_device", lambda *_, **__: pytest.fail("measured"))
    code, _, err = run("profile", *arguments)
    assert (code, error in err) == (2, True), err


def test_a_server_takes_profiles_of_checkpoint_folders(client: lop.Client, checkpoint: Path) -> None:
    devices = ServerDevices(client)
    assert find_profile(devices, "bench") is None
    assert find_profile(devices, "l4") is None
    model = TimedModel.of_folder(checkpoint)
    first = measure_machine(devices, "bench", model, SETTINGS)
    assert find_profile(devices, "bench") == first
    assert [device["id"] for device in devices.all()] == [*DEVICES, "bench"]
    both = measure_machine(devices, "bench", model, ProfileSettings(2, (6, 12), 4, 0.0, 1))
    assert [table.batch for table in both.layers] == [1, 2]
    assert both.layers[0] == first.layers[0]
    alone = measure_machine(devices, "bench", model, SETTINGS, replace=True)
    assert [table.batch for table in alone.layers] == [1]
    assert find_profile(devices, "bench") == alone


def test_an_id_stands_for_one_machine(client: lop.Client, checkpoint: Path) -> None:
    devices = ServerDevices(client)
    devices.register(made_up_profile("bench"))
    model = TimedModel.of_folder(checkpoint)
    with pytest.raises(InputError, match=r"one machine.*made-up processor.*--replace"):
        measure_machine(devices, "bench", model, SETTINGS)
    measure_machine(devices, "bench", model, SETTINGS, replace=True)
    with pytest.raises(ConflictError):
        measure_machine(devices, "l4", model, SETTINGS)


def test_the_client_reports_what_the_server_refuses(client: lop.Client) -> None:
    with pytest.raises(NotFoundError, match="toaster"):
        client.device("toaster")
    with pytest.raises(ConflictError, match="must not be one of the catalogue"):
        client.register_device(made_up_profile("l4").model_dump(mode="json"))
    with pytest.raises(InputError, match="memory_bytes"):
        client.register_device(made_up_profile("x").model_dump(mode="json") | {"memory_bytes": 0})


def test_a_folder_without_pictures_in_its_template_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    for file in checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "chat_template.jinja").write_text("{{ raise_exception('text only') }}")
    with pytest.raises(DatasetError, match="text only"):
        TimedModel.of_folder(tmp_path).images(1)


def test_a_profile_of_another_version_is_told(database: str) -> None:
    with pytest.raises(InputError, match="not a valid device profile"):
        lop_devices.profile_of({"id": "bench"})
