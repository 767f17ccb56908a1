"""Processors out of folders as the hub has them, in the installation that the README makes: no torchvision."""

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from pruning.checkpoints.loading import load_model, load_processor
from pruning.data.batches import make_batches
from pruning.data.conversations import load_conversations
from pruning.errors import CheckpointError, MissingExtraError
from pruning.forward.decoder_inputs import decoder_inputs
from pruning.measuring.generation import generate_answers
from tests.tiny_models import write_conversations
from tests.tiny_models.hub_folders import HUB_FOLDERS, save_hub_folder


@pytest.fixture(params=HUB_FOLDERS)
def hub_folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return save_hub_folder(tmp_path / str(request.param), str(request.param))


def test_a_folder_of_the_hub_is_measured(hub_folder: Path, tmp_path: Path) -> None:
    conversations = load_conversations(write_conversations(tmp_path, 4))
    processor, model = load_processor(hub_folder), load_model(hub_folder)
    tokenizer = processor.tokenizer
    shuffled = [conversations[-1], *conversations[:-1]]  # one without a picture comes first
    (batch,) = make_batches(shuffled, processor)
    ids = batch.inputs["input_ids"]
    found = [tokenizer.decode(ids[span.row, span.start : span.stop]).strip() for span in batch.spans]
    assert found == [f"{turn.answer}<eos>" for c in shuffled for turn in c.turns]
    places = int((ids == model.config.image_token_id).sum())
    assert places % 3 == 0
    assert places >= 3 * 4
    (inputs,) = decoder_inputs(model, [batch])
    assert inputs["inputs_embeds"].shape == (4, ids.shape[1], 32)
    report = generate_answers(model, processor, conversations)
    assert report.num_answers == 8


def test_pictures_are_seen(hub_folder: Path, tmp_path: Path) -> None:
    conversations = load_conversations(write_conversations(tmp_path, 2))[:1]
    processor = load_processor(hub_folder)
    before = make_batches(conversations, processor)[0].inputs["pixel_values"].float()
    (image,) = (c.image for c in conversations if c.image is not None)
    image.write_bytes((write_conversations(tmp_path / "other", 2, seed=5).parent / "images" / "0.png").read_bytes())
    after = make_batches(conversations, processor)[0].inputs["pixel_values"].float()
    assert before.shape == after.shape
    assert not torch.equal(before, after)


def test_pillow_is_used_whatever_else_is_installed(tmp_path: Path) -> None:
    processor = load_processor(save_hub_folder(tmp_path / "a", "Qwen2.5-VL"))
    assert type(processor.image_processor).__name__ == "Qwen2VLImageProcessorPil"
    assert type(load_processor(save_hub_folder(tmp_path / "b", "Mistral-3"))).__name__ == "PixtralProcessor"


@pytest.mark.skipif(find_spec("num2words") is not None, reason="it is installed")
def test_transformers_is_left_as_it_was(tmp_path: Path) -> None:
    load_processor(save_hub_folder(tmp_path / "a", "SmolVLM2"))
    load_processor(save_hub_folder(tmp_path / "b", "Mistral-3"))
    assert sys.modules["transformers.models.smolvlm.processing_smolvlm"].num2words is None
    assert "transformers.models.pixtral.image_processing_pixtral" not in sys.modules


@pytest.mark.parametrize(
    ("error", "package"),
    [
        (ImportError("X requires the Torchvision library but it was not found in your environment."), "torchvision"),
        (ModuleNotFoundError("No module named 'timm'", name="timm.models"), "timm"),
        (ValueError("`tiktoken` is required. Install it with `pip install tiktoken`."), "tiktoken"),
        (ValueError("Could not load X. Missing optional dependencies: torchvision. Please install"), "torchvision"),
    ],
)
def test_a_package_that_is_missing_is_named(
    error: Exception, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoImageProcessor

    def refuse(*_args: object, **_kwargs: object) -> None:
        raise error

    folder = save_hub_folder(tmp_path / "a", "Qwen2-VL")
    monkeypatch.setattr(AutoImageProcessor, "from_pretrained", refuse)
    with pytest.raises(MissingExtraError, match=f"`{package}` must be installed.*pip install {package}"):
        load_processor(folder)


def test_a_sentencepiece_vocabulary_names_what_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_hub_folder(tmp_path / "a", "Qwen2-VL")
    (folder / "tokenizer.json").rename(folder / "tokenizer.model")
    monkeypatch.setattr("pruning.checkpoints.tokenizer_checks.is_installed", lambda _name: False)
    with pytest.raises(MissingExtraError, match="pip install sentencepiece"):
        load_processor(folder)


@pytest.mark.parametrize("name", ["NoSuchProcessor", "Wav2Vec2Processor"])
def test_a_class_that_takes_no_pictures(name: str, tmp_path: Path) -> None:
    folder = save_hub_folder(tmp_path / "a", "LLaVA-OneVision")
    for file in ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json"):
        document = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({**document, "processor_class": name}))
    if name == "NoSuchProcessor":  # as transformers: the model's own then
        assert type(load_processor(folder)).__name__ == "LlavaOnevisionProcessor"
        return
    with pytest.raises(CheckpointError, match="processor for images and text"):
        load_processor(folder)


@pytest.mark.parametrize("content", ["{", "[]", "\ud800"])
def test_damaged_settings(content: str, tmp_path: Path) -> None:
    folder = save_hub_folder(tmp_path / "a", "SmolVLM")
    (folder / "preprocessor_config.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(CheckpointError):
        load_processor(folder)
