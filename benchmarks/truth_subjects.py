"""The models that `benchmarks.truth` asks plans for, registered in its database."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

from benchmarks.built_files import write_hollow_files
from engines.local import LocalEngine
from engines.memo import MemoisedEvaluator
from lop.workflows.compute import load_for_compute
from lop.workflows.devices import DatabaseDevices
from lop.workflows.profiling import TimedModel, measure_machine
from lop.workflows.registration import register_model
from mcts.sensitivity import SENSITIVITY_SOURCE, scan_sensitivity
from pruning.anatomy.model_class import model_class
from pruning.checkpoints.anatomy_reader import load_config, read_anatomy
from pruning.checkpoints.loading import load_processor
from pruning.data.batches import make_batches
from pruning.data.conversations import calibration_id, load_conversations
from pruning.devices.device import Device, profiled_device
from pruning.devices.timing.profiling import ProfileSettings
from pruning.measuring.evaluation import ConfigurationEvaluator
from pruning.planning.ffn_spaces import ffn_levels
from pruning.planning.ranking import Ranking
from storage.contract import Repository
from storage.records import BINARY, CalibrationRecord, ModelRecord

LARGE = "llava-1.5-7b-shaped"
MACHINE = "this-machine"
CHUNK = 100
PROFILED_PROMPTS, PROFILED_ANSWER = (32, 64, 128, 256), 64


@dataclass(frozen=True)
class TruthSubject:
    """A registered model that requests are for.

    Attributes:
        model_id: in the database.
        source: a folder with its config.json.
        share: of all requests.
        is_whole: `source` holds the weights too, so that plans can be applied to it.
    """

    model_id: str
    source: Path
    share: float
    is_whole: bool


def in_chunks(
    database_url: str, subjects: Sequence[TruthSubject], count: int, seed: str
) -> list[tuple[str, TruthSubject, int, str]]:
    """What processes share: each subject's part of `count` in pieces of `CHUNK` at most, with a seed of its own."""
    return [
        (database_url, subject, min(CHUNK, round(count * subject.share) - start), f"{seed}:{index}:{start}")
        for index, subject in enumerate(subjects)
        for start in range(0, round(count * subject.share), CHUNK)
    ]


def register_reference(
    repository: Repository, reference: Path, *, share: float = 0.95, num_conversations: int = 8
) -> TruthSubject:
    """The reference model with what plans are made from: statistics, and a one-layer scan on a few conversations."""
    folder = reference / "model"
    conversations = load_conversations(reference / "data" / "calibration.json")
    model = register_model(repository, "reference", folder, conversations)
    few = conversations[:num_conversations]
    answers = sum(len(c.turns) for c in few)
    scanned = CalibrationRecord(calibration_id(few), "scan", len(few), answers, datetime.now(UTC))
    repository.add_calibration(scanned)
    ranking = Ranking.from_bytes(repository.get_artifact(model.ranking_sha256).content)
    batches = make_batches(few, load_processor(folder))
    evaluator = ConfigurationEvaluator(load_for_compute(folder), batches, ranking)
    space = ffn_levels(model.anatomy)
    memo = MemoisedEvaluator(
        repository, model.id, model.ranking_sha256, scanned.id, LocalEngine(lambda: evaluator), SENSITIVITY_SOURCE
    )
    scan_sensitivity(space, lambda choices: memo([space.architecture(choice) for choice in choices]))
    return TruthSubject(model.id, folder, share, is_whole=True)


def register_machine(repository: Repository, subject: TruthSubject, *, seconds: float = 5.0) -> Device:
    """This machine, measured for a few seconds with the layers of `subject`, which has a processor."""
    settings = ProfileSettings(prompt_tokens=PROFILED_PROMPTS, output_tokens=PROFILED_ANSWER, seconds=seconds)
    model = TimedModel.registered(repository, subject.model_id)
    return profiled_device(measure_machine(DatabaseDevices(repository), MACHINE, model, settings))


def register_large(repository: Repository, folder: Path, *, share: float = 0.05) -> TruthSubject:
    """A model of LLaVA-1.5-7B's sizes in float16, by config and headers: plans need no weights."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    text = LlamaConfig(
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
        vocab_size=32064,
    )
    vision = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
        projection_dim=768,
    )
    LlavaConfig(text_config=text, vision_config=vision, dtype="float16").save_pretrained(folder)
    config = load_config(folder)
    with torch.device("meta"):
        model = model_class(config)(config).to(torch.float16)
    write_hollow_files(model, folder)
    anatomy = read_anatomy(folder)
    orders = tuple(np.arange(layer.ffn_width, dtype=np.int32) for layer in anatomy.layers)
    sha256 = repository.put_artifact(Ranking(orders, anatomy.fingerprint).to_bytes(), BINARY)
    repository.add_model(ModelRecord(LARGE, anatomy, "0" * 64, sha256, str(folder), datetime.now(UTC)))
    return TruthSubject(LARGE, folder, share, is_whole=False)
