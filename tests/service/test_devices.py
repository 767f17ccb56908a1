"""Devices over HTTP: the catalogue, registering a profile, and everything a profile may do wrong."""

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient

from pruning.devices.catalogue import DEVICES
from pruning.devices.profile import MAX_PROFILE_BYTES
from pruning.errors import NotFoundError
from service.devices import DeviceFinder, find_device
from storage.contract import Repository
from storage.records import DeviceRecord
from tests.pruning.made_up_devices import largest_profile, made_up_profile
from tests.service.made_up import NOW
from tests.service.test_errors import problem_of

JSON = {"Content-Type": "application/json"}
Edit = Callable[[dict[str, Any]], None]


@pytest.fixture
def profile() -> dict[str, Any]:
    document: dict[str, Any] = made_up_profile("bench").model_dump(mode="json")
    return document


def test_the_catalogue(client: TestClient) -> None:
    page = client.get("/v1/devices").json()
    assert [item["id"] for item in page["items"]] == list(DEVICES)
    l4 = next(item for item in page["items"] if item["id"] == "l4")
    assert l4 == {
        "id": "l4",
        "name": "NVIDIA L4",
        "memory_bytes": 24 * 2**30,
        "flops_per_s": {"F32": 30.3e12, "F16": 121e12, "BF16": 121e12},
        "bandwidth_bytes_per_s": 300e9,
        "measured": False,
        "source": "NVIDIA L4 Tensor Core GPU data sheet",
    }
    assert client.get("/v1/devices/l4").json() == l4 | {"profile": None}


def test_a_registered_device_is_listed_behind_the_catalogue(client: TestClient, profile: dict[str, Any]) -> None:
    answer = client.post("/v1/devices", json=profile)
    assert answer.status_code == 201
    assert answer.headers["location"] == "/v1/devices/bench"
    assert answer.json() == client.get("/v1/devices/bench").json()
    assert answer.json()["profile"] == profile
    assert answer.json()["measured"] is True
    assert "made-up processor" in answer.json()["source"]
    page = client.get("/v1/devices", params={"limit": 1, "offset": len(DEVICES)}).json()
    assert (page["total"], page["items"][0]["id"], page["next"]) == (len(DEVICES) + 1, "bench", None)


def test_times_of_attention_are_kept(client: TestClient, profile: dict[str, Any]) -> None:
    attention()(profile)
    assert client.post("/v1/devices", json=profile).status_code == 201
    assert client.get("/v1/devices/bench").json()["profile"] == profile


def test_a_later_profile_takes_the_place_of_an_earlier_one(
    client: TestClient, repository: Repository, profile: dict[str, Any]
) -> None:
    client.post("/v1/devices", json=profile)
    client.post("/v1/devices", json=profile | {"memory_bytes": 7})
    assert client.get("/v1/devices/bench").json()["memory_bytes"] == 7
    assert find_device(repository, "bench").memory_bytes == 7
    assert client.get("/v1/devices").json()["total"] == len(DEVICES) + 1


def test_find_device_knows_both_kinds(client: TestClient, repository: Repository, profile: dict[str, Any]) -> None:
    assert find_device(repository, "l4") is DEVICES["l4"]
    with pytest.raises(NotFoundError, match=r"'bench'.*Known devices: jetson-orin-nano-8gb, .*lop device profile"):
        find_device(repository, "bench")
    client.post("/v1/devices", json=profile)
    device = find_device(repository, "bench")
    assert device.profile == made_up_profile("bench")
    assert device.peak_flops_of("F32") == 1e11
    with pytest.raises(NotFoundError, match=r"'toaster'.*Known devices: bench, jetson-orin-nano-8gb, "):
        find_device(repository, "toaster")


def test_an_unknown_device_reads_no_profile_and_names_few_ids(
    client: TestClient, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(30):
        repository.add_device(DeviceRecord(made_up_profile(f"bench-{number}"), NOW))

    def read() -> None:
        raise AssertionError("profiles are read")

    monkeypatch.setattr(repository, "list_devices", read)
    with pytest.raises(NotFoundError) as caught:
        find_device(repository, "toaster")
    newest = ", ".join(f"bench-{number}" for number in range(29, 9, -1))
    more = f"{10 + len(DEVICES)} more, see `lop device list`"
    assert caught.value.remedy.startswith(f"Known devices: {newest} and {more}. Register")
    # Over HTTP and in a plan request it is the same error.
    assert problem_of(client.get("/v1/devices/toaster"), 404)["remedy"] == caught.value.remedy
    planning = client.post("/v1/plans", json={"model": "tiny", "sparsity": 0.5, "device": "toaster"})
    assert problem_of(planning, 404)["remedy"] == caught.value.remedy


def test_the_catalogues_ids_are_taken(client: TestClient, profile: dict[str, Any]) -> None:
    problem = problem_of(client.post("/v1/devices", json=profile | {"id": "l4"}), 409)
    assert problem["type"] == "urn:lop:conflict"
    assert "Choose another id" in str(problem["remedy"])


def test_an_unknown_device_is_404(client: TestClient) -> None:
    problem = problem_of(client.get("/v1/devices/toaster"), 404)
    assert problem["values"] == "'toaster'"
    assert "l4" in str(problem["remedy"])


def layer(**change: Any) -> Edit:
    return lambda document: document["layers"][0].update(change)


def outside(**change: Any) -> Edit:
    return lambda document: document["outside"][0].update(change)


def whole(**change: Any) -> Edit:
    return lambda document: document.update(change)


def without(name: str) -> Edit:
    def edit(document: dict[str, Any]) -> None:
        del document[name]

    return edit


FALLING = [[1.0, 2.0, 3.0], [2.0, 4.0, 3.9]]


def attention(**change: Any) -> Edit:
    """Of a profile that has times of attention; the shape has 2 KV groups."""
    table = {
        "kv_groups": [0, 1, 2],
        "prefill_ms": [[0.1, 0.3, 0.5], [0.2, 0.6, 1.0]],
        "decode_ms": [[0.01, 0.03, 0.05], [0.01, 0.03, 0.05]],
    }
    return layer(attention=table | change)


BROKEN: dict[str, tuple[Edit, str]] = {
    "attention without an axis": (layer(attention={}), "attention.kv_groups"),
    "a number of groups twice": (attention(kv_groups=[0, 2, 2]), "attention.kv_groups must ascend"),
    "a ladder without no groups": (
        attention(kv_groups=[1, 2], prefill_ms=[[0.3, 0.5]] * 2, decode_ms=[[0.03, 0.05]] * 2),
        "attention.kv_groups go from 0 to the 2 of the shape",
    ),
    "a ladder that ends early": (
        attention(kv_groups=[0, 1], prefill_ms=[[0.1, 0.3]] * 2, decode_ms=[[0.01, 0.03]] * 2),
        "attention.kv_groups go from 0 to the 2 of the shape",
    ),
    "attention with a missing row": (attention(prefill_ms=[[0.1, 0.3, 0.5]]), "attention.prefill_ms needs 2 rows"),
    "attention that falls": (
        attention(decode_ms=[[0.01, 0.03, 0.02]] * 2),
        "attention.decode_ms[0] must not fall while the number of groups grows",
    ),
    "attention that falls along the prompts": (
        attention(prefill_ms=[[0.1, 0.3, 0.5], [0.05, 0.3, 0.5]]),
        "attention.prefill_ms must not fall by more than 10% while the length grows",
    ),
    "a layer quicker than its attention": (
        attention(prefill_ms=[[0.1, 0.3, 1.5], [0.2, 0.6, 1.6]]),
        "prefill_ms[0] must not be below attention.prefill_ms[0]",
    ),
    "a time of attention of zero": (attention(decode_ms=[[0.0, 0.03, 0.05]] * 2), "attention.decode_ms.0.0"),
    "no id": (without("id"), "id"),
    "an id with a slash": (whole(id="a/b"), "id"),
    "an id that is no text": (whole(id=7), "id"),
    "a name with a NUL": (whole(name="a\0b"), "name"),
    "no memory": (without("memory_bytes"), "memory_bytes"),
    "zero memory": (whole(memory_bytes=0), "memory_bytes"),
    "negative memory": (whole(memory_bytes=-1), "memory_bytes"),
    "fractional memory": (whole(memory_bytes=1.5), "memory_bytes"),
    "memory beyond 64 bits": (whole(memory_bytes=2**70), "memory_bytes"),
    "an unknown kind": (whole(kind="tpu"), "kind"),
    "an unknown field": (whole(colour="red"), "colour"),
    "no figure of F32": (whole(flops_per_s={"F16": 1e12}), "flops_per_s needs the figure of F32"),
    "a figure of zero": (whole(flops_per_s={"F32": 0.0}), "flops_per_s"),
    "an unknown dtype": (whole(flops_per_s={"F32": 1.0, "F8": 1.0}), "flops_per_s"),
    "no bandwidth": (without("bandwidth_bytes_per_s"), "bandwidth_bytes_per_s"),
    "infinite bandwidth": (whole(bandwidth_bytes_per_s=1e400), "bandwidth_bytes_per_s"),
    "two tables of one key": (lambda d: d["layers"].append(copy.deepcopy(d["layers"][0])), "one table a shape"),
    "a missing row": (layer(prefill_ms=[[1.0, 2.0, 3.0]]), "prefill_ms needs 2 rows of 3 times"),
    "a missing cell": (layer(prefill_ms=[[1.0, 2.0, 3.0], [1.0, 2.0]]), "prefill_ms needs 2 rows of 3 times"),
    "an empty cell": (layer(decode_ms=[[1.0, None, 3.0], [1.0, 2.0, 3.0]]), "decode_ms.0.1"),
    "a time in words": (layer(decode_ms=[["1", 2.0, 3.0], [1.0, 2.0, 3.0]]), "decode_ms.0.0"),
    "a time of zero": (layer(decode_ms=[[0.0, 2.0, 3.0], [1.0, 2.0, 3.0]]), "decode_ms.0.0"),
    "a negative time": (layer(prefill_ms=[[-1.0, 2.0, 3.0], [1.0, 2.0, 3.0]]), "prefill_ms.0.0"),
    "a time that is no number": (layer(prefill_ms=[[1.0, float("nan"), 3.0], [1.0, 2.0, 3.0]]), "prefill_ms.0.1"),
    "an endless time": (layer(prefill_ms=[[1.0, 2.0, 1e300], [1.0, 2.0, 3.0]]), "prefill_ms.0.2"),
    "a prefill that falls": (layer(prefill_ms=FALLING), "prefill_ms[1] must not fall while the width grows"),
    "a decode that falls": (layer(decode_ms=FALLING), "decode_ms[1] must not fall while the width grows"),
    "a prefill that falls along the prompts": (
        layer(prefill_ms=[[1.0, 2.0, 3.0], [0.8, 2.0, 3.0]]),
        "prefill_ms must not fall by more than 10% while the length grows",
    ),
    "a decode that falls along the cache": (
        layer(decode_ms=[[1.0, 2.0, 3.0], [1.0, 2.0, 2.5]]),
        "decode_ms must not fall by more than 10% while the length grows",
    ),
    "a rest that falls along the prompts": (
        outside(prefill_ms=[5.0, 4.0]),
        "found 5.0 ms and then 4.0 ms at 20 tokens outside of the layers",
    ),
    "widths out of order": (layer(ffn_widths=[8, 32, 16]), "ffn_widths must ascend"),
    "a width twice": (layer(ffn_widths=[8, 8, 32]), "ffn_widths must ascend"),
    "no widths": (layer(ffn_widths=[], prefill_ms=[[], []], decode_ms=[[], []]), "ffn_widths"),
    "prompts out of order": (layer(prompt_tokens=[20, 10]), "prompt_tokens must ascend"),
    "a batch of zero": (layer(batch=0), "batch"),
    "a shape of nothing": (layer(shape={}), "shape"),
    "no vision time": (outside(vision_ms=-1.0), "vision_ms"),
    "a missing prompt": (outside(prefill_ms=[5.0]), "prefill_ms needs a time for each of 2 prompt lengths, found 1"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_profile_is_422_and_says_where(client: TestClient, profile: dict[str, Any], name: str) -> None:
    edit, where = BROKEN[name]
    edit(profile)
    problem = problem_of(client.post("/v1/devices", content=json.dumps(profile), headers=JSON), 422)
    assert where in str(problem["rule"])
    assert client.get("/v1/devices").json()["total"] == len(DEVICES)


def test_the_largest_profile_is_accepted_and_a_longer_body_is_not(client: TestClient) -> None:
    largest = json.dumps(largest_profile().model_dump(mode="json"), separators=(",", ":"))
    answer = client.post("/v1/devices", content=largest, headers=JSON)
    assert answer.status_code == 201, answer.text[:300]
    assert client.get("/v1/devices/bench").json()["profile"] == json.loads(largest)
    longer = largest + " " * (MAX_PROFILE_BYTES + 1 - len(largest))
    problem = problem_of(client.post("/v1/devices", content=longer, headers=JSON), 413)
    assert problem["rule"] == f"a request body has at most {MAX_PROFILE_BYTES} bytes"
    problem_of(client.post("/v1/plans", content=largest, headers=JSON), 413)


def test_a_profile_from_before_lengths_were_checked_still_prices(client: TestClient, repository: Repository) -> None:
    profile = made_up_profile("bench")
    table = profile.layers[0].model_copy(update={"prefill_ms": ((1.0, 2.0, 3.0), (0.5, 1.0, 2.0))})
    repository.add_device(DeviceRecord(profile.model_copy(update={"layers": (table,)}), NOW))
    assert client.get("/v1/devices/bench").json()["profile"]["layers"][0]["prefill_ms"][1][0] == 0.5
    plan = client.post("/v1/plans", json={"model": "tiny", "sparsity": 0.5, "device": "bench"}).json()
    assert plan["achieved"]["latency_ms"] > 0


def test_a_profile_is_read_once_until_another_is_registered(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository.add_device(DeviceRecord(made_up_profile("bench"), NOW))
    reads: list[str] = []
    get = repository.get_device

    def read(name: str) -> DeviceRecord:
        reads.append(name)
        return get(name)

    monkeypatch.setattr(repository, "get_device", read)
    finder = DeviceFinder(repository)
    first = finder.find("bench")
    assert finder.find("bench") is first
    assert reads == ["bench"]
    repository.add_device(DeviceRecord(made_up_profile("bench", layer_ms=2.0), NOW))
    second = finder.find("bench")
    assert second.device == find_device(repository, "bench") != first.device
    assert second.profile_sha256 != first.profile_sha256
    assert finder.find("l4").profile_sha256 is None
    with pytest.raises(NotFoundError, match=r"'toaster'.*bench, .*l4, "):
        finder.find("toaster")


def test_a_profile_is_json(client: TestClient) -> None:
    problem_of(client.post("/v1/devices", content="{}"), 415)
    problem_of(client.post("/v1/devices", content="{", headers=JSON), 422)
