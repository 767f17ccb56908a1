"""What a profile may hold, and how large it may be."""

import json

import pytest

from pruning.devices.profile import MAX_PROFILE_BYTES, MAX_TIMES, parse_profile
from pruning.devices.tables import LayerTable, OutsideTable
from pruning.errors import InputError
from tests.pruning.made_up_devices import largest_profile, made_up_profile


def test_times_that_fall_along_the_lengths_are_noise_up_to_a_tenth() -> None:
    document = made_up_profile().model_dump(mode="json")
    document["layers"][0]["decode_ms"][1] = [0.091, 0.2, 0.3]
    document["outside"][0]["prefill_ms"] = [5.0, 4.6]
    parse_profile(json.dumps(document))
    document["layers"][0]["decode_ms"][1] = [0.089, 0.2, 0.3]
    message = r"decode_ms must not fall by more than 10% while the length grows, found 0\.1 ms and then 0\.089 ms at 31"
    with pytest.raises(InputError, match=message):
        parse_profile(json.dumps(document))
    assert parse_profile(json.dumps(document), stored=True).layers[0].decode_ms[1][0] == 0.089


def test_the_largest_profile_is_as_long_as_is_said() -> None:
    profile = largest_profile()
    assert 0.99 * MAX_TIMES < profile.num_times <= MAX_TIMES
    assert len(json.dumps(profile.model_dump(mode="json"), separators=(",", ":"))) <= MAX_PROFILE_BYTES
    longer = profile.model_dump(mode="json")
    longer["outside"][0] |= {"prompt_tokens": [*range(1, 301)], "prefill_ms": [1.0] * 300}
    with pytest.raises(InputError, match=f"hold at most {MAX_TIMES} numbers, found"):
        parse_profile(json.dumps(longer))
    other = made_up_profile(batch=7)
    grown = OutsideTable(**dict(other.outside[0]) | {"prompt_tokens": (*range(1, 513),), "prefill_ms": (1.0,) * 512})
    fewer = profile.model_copy(
        update={"machine": other.machine, "layers": profile.layers[1:], "outside": profile.outside[1:]}
    )
    joined = fewer.joined_with(other)
    assert joined.num_times <= MAX_TIMES
    many = LayerTable(**dict(profile.layers[0]) | {"batch": 7})
    with pytest.raises(InputError, match="numbers together"):
        fewer.joined_with(other.model_copy(update={"layers": (many,), "outside": (grown,)}))
