"""Tensors that wait in memory or in a file come back as they were."""

import tempfile
from pathlib import Path

import pytest
import torch

from pruning.errors import InputError
from pruning.forward.tensor_store import TensorStore, get_all, put_all

CPU = torch.device("cpu")
TENSORS = [
    torch.arange(6.0).reshape(2, 3),
    torch.tensor([[True, False]]),
    torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16),
    torch.arange(5),
    torch.tensor(2.5),
    torch.zeros(0, 3),
    torch.arange(8.0).reshape(2, 4).t(),
    torch.arange(3).expand(2, 3),
]


@pytest.mark.parametrize(("resident_bytes", "file_bytes"), [(0, 174), (24, 150), (10**6, 0)])
def test_every_tensor_comes_back(resident_bytes: int, file_bytes: int) -> None:
    with TensorStore(resident_bytes) as store:
        keys = [store.put(tensor) for tensor in TENSORS]
        assert store.file_bytes == file_bytes
        for key, tensor in reversed(list(zip(keys, TENSORS, strict=True))):
            found = store.get(key, CPU)
            assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
            assert torch.equal(found, tensor)


@pytest.mark.parametrize("resident_bytes", [0, 10**6])
def test_replacing_changes_one_and_what_was_put_stays_as_it_is(resident_bytes: int) -> None:
    first, second = torch.zeros(2, 3), torch.ones(2, 3)
    with TensorStore(resident_bytes) as store:
        keys = store.put(first), store.put(second)
        store.replace(keys[0], torch.full((2, 3), 7.0))
        assert torch.equal(store.get(keys[0], CPU), torch.full((2, 3), 7.0))
        assert torch.equal(store.get(keys[1], CPU), second)
    assert torch.equal(first, torch.zeros(2, 3))


def test_what_is_inside_containers() -> None:
    value = {"masks": {"full": torch.ones(2), "sliding": None}, "pair": (torch.zeros(1), 3), "list": [torch.ones(1)]}
    with TensorStore(0) as store:
        stored = put_all(store, value)
        assert store.file_bytes == 16
        found = get_all(store, stored, CPU)
    assert found["masks"]["sliding"] is None
    assert isinstance(found["pair"], tuple)
    assert found["pair"][1] == 3
    assert torch.equal(found["masks"]["full"], torch.ones(2))
    assert torch.equal(found["list"][0], torch.ones(1))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    with Path("/dev/full").open("r+b", buffering=0) as full:
        monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: full)
        with TensorStore(0) as store, pytest.raises(InputError, match=r"24 bytes in .*No space left.*TMPDIR"):
            store.put(torch.zeros(2, 3))
