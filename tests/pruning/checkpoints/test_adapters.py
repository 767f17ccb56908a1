"""Adapter files beside weights: the weights are the model, whether or not peft is installed."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pruning.checkpoints.adapters import adapter_note
from pruning.checkpoints.anatomy_reader import read_anatomy
from pruning.checkpoints.loading import load_model
from pruning.errors import CheckpointError
from pruning.forward.layer_source import CheckpointLayers

CONFIG = {"base_model_name_or_path": "org/base", "peft_type": "LORA", "r": 4, "target_modules": ["down_proj"]}


@pytest.fixture
def merged(checkpoint: Path, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(checkpoint, tmp_path / "merged"))
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG))
    name = "base_model.model.model.language_model.layers.0.mlp.down_proj.lora_{}.weight"
    save_file(
        {name.format("A"): torch.ones(4, 48), name.format("B"): torch.ones(32, 4)}, folder / "adapter_model.safetensors"
    )
    return folder


@pytest.fixture(params=[True, False])
def _peft(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With peft, which is installed, and as where it is not."""
    monkeypatch.setattr("transformers.integrations.peft.is_peft_available", lambda: request.param)


@pytest.mark.usefixtures("_peft")
def test_the_weights_are_the_model(merged: Path, checkpoint: Path) -> None:
    found, expected = load_model(merged).state_dict(), load_model(checkpoint).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert read_anatomy(merged).fingerprint == read_anatomy(checkpoint).fingerprint
    CheckpointLayers(merged, torch.device("cpu"))


def test_transformers_itself_would_put_it_on_top(merged: Path) -> None:
    """So the test above says something."""
    from transformers import LlavaForConditionalGeneration

    model = LlavaForConditionalGeneration.from_pretrained(merged)
    assert any("lora" in name for name in model.state_dict())


def test_it_is_said(merged: Path, checkpoint: Path) -> None:
    note = adapter_note(merged)
    assert note is not None
    assert "adapter_config.json is not applied" in note
    assert adapter_note(checkpoint) is None


def test_an_adapter_alone_is_no_model(merged: Path) -> None:
    for path in [*merged.glob("model*"), merged / "config.json"]:
        path.unlink()
    with pytest.raises(CheckpointError, match=r"whole model.*an adapter alone, of org/base.*merge_and_unload"):
        read_anatomy(merged)
