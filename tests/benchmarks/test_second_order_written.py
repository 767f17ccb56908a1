"""What plans with bits write, read back in new processes, and the peak of a reconstruction: on tiny models."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from transformers import LlavaForConditionalGeneration

from benchmarks import second_order_written
from benchmarks import steps as steps_module
from benchmarks.random_checkpoint import LlavaShape
from benchmarks.real_data import CALIBRATION, VALIDATION
from benchmarks.second_order_figures import summary_of
from benchmarks.second_order_joint import JointModel
from benchmarks.second_order_memory import memory_figures, memory_rows
from benchmarks.second_order_models import Model
from benchmarks.second_order_reload import loaded, logits_of_model, said
from benchmarks.second_order_written import (
    _texts,
    compared,
    in_bits,
    measured,
    planned,
    reload_figures,
    rounded_in_memory,
)
from benchmarks.steps import Steps
from pruning.checkpoints import loading
from pruning.checkpoints.loading import load_model, load_processor
from pruning.cutting.prune_checkpoint import prune_checkpoint
from pruning.data.batches import make_batches
from pruning.measuring.evaluation import evaluate_model
from tests.pruning.packed_models import JOINT, save_wide_checkpoint
from tests.tiny_models import write_conversations

TINY = LlavaShape(num_layers=2, hidden_size=64, ffn_width=512, num_heads=4, vocab_size=2000, num_vision_layers=1)


@pytest.fixture(autouse=True)
def no_digests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Digests of the code take longer than what is measured here."""
    monkeypatch.setattr(steps_module, "measured_code", lambda *_: {})
    monkeypatch.setattr(steps_module, "_code_of", lambda *_: {})


def test_a_joint_plan_is_read_back_as_it_was_scored(tmp_path: Path) -> None:
    """Widths, groups, a skip and both numbers of bits, in bfloat16, by both runtimes."""
    pytest.importorskip("llama_cpp")
    pytest.importorskip("compressed_tensors")
    data = {
        CALIBRATION: write_conversations(tmp_path / "calibration", 6),
        VALIDATION: write_conversations(tmp_path / "validation", 3, seed=1),
    }
    model = Model("reference", save_wide_checkpoint(tmp_path / "wide"), data, tmp_path / "found", None)
    joint = JointModel.of(model)
    row = measured(joint, "joint", JOINT.document())
    assert row["kl_scored"] > 0.1
    assert row["kl_difference"] < 1e-3
    assert row["logit_difference"] < 1e-4
    assert row["reloaded_agreement"] == 1.0
    assert row["bytes_planned"] == row["bytes_written"]
    assert row["gguf_types"]["Q8_0"] == 3
    assert row["gguf_types"]["Q4_0"] == 4 + 3
    assert row["positions"] > 50
    assert row["llama_agreement"] > 0.7
    assert row["llama_agreement_everywhere"] > 0.7
    assert not (tmp_path / "found" / ".reload").exists()
    assert {x.bits for _, x in in_bits(joint, 4).items} == {4}


def test_a_folder_that_is_not_cut_needs_no_lop_to_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' own class, unpacked by compressed-tensors' own hook, says what was scored, and has the same KL."""
    pytest.importorskip("compressed_tensors")
    data = {
        CALIBRATION: write_conversations(tmp_path / "calibration", 6),
        VALIDATION: write_conversations(tmp_path / "validation", 3, seed=1),
    }
    (tmp_path / "found").mkdir()
    joint = JointModel.of(Model("reference", save_wide_checkpoint(tmp_path / "wide"), data, tmp_path / "found", None))
    architecture = in_bits(joint, 4)
    folder = prune_checkpoint(joint.stored, planned(joint, architecture), joint.order, tmp_path / "folder")
    texts, _ = _texts(joint)
    expected = said(logits_of_model(rounded_in_memory(joint, architecture), texts))
    monkeypatch.setattr(loading, "load_pruned", None)
    model = loaded(folder, texts[0])
    assert type(model) is LlavaForConditionalGeneration
    assert np.abs(said(logits_of_model(model, texts))["logits"] - expected["logits"]).max() < 1e-4
    batches = make_batches(joint.validation, load_processor(joint.path))
    (scored,) = joint.on_validation([architecture])
    assert evaluate_model(model, batches, load_model(joint.path)).kl == pytest.approx(scored.kl, rel=1e-4)


def test_what_other_runtimes_say_is_compared() -> None:
    """Of two texts of three and one tokens, llama.cpp has one other next token, whose logit was .5 below the best."""
    texts = np.array([[4.0, 1.0, 0.0], [0.0, 2.0, 1.5], [0.0, 0.0, 3.0]]), np.array([[1.0, 5.0, 0.0]])
    other = np.array([[4.0, 1.0, 0.0], [0.0, 2.0, 2.1], [0.0, 0.0, 3.0]])
    expected, llama = said(x.astype(np.float32) for x in texts), said([other, texts[1]])
    assert expected["chosen"].tolist() == [0, 1, 2, 1]
    assert expected["margins"].tolist() == [3.0, 0.5, 3.0, 4.0]
    assert expected["logits"].shape == (4, 3)
    in_answers = np.array([False, True, True, False])
    found = compared(expected, {**expected, "logits": expected["logits"] + 0.05}, llama, in_answers)
    assert found.pop("logit_difference") == pytest.approx(0.01, rel=1e-5)
    assert found == {
        "reloaded_agreement": 1.0,
        "positions": 2,
        "llama_agreement": 0.5,
        "llama_agreement_everywhere": 0.75,
        "llama_largest_margin": 0.5,
        "median_margin": 3.0,
    }
    assert compared(expected, llama, llama, in_answers)["reloaded_agreement"] == 0.75
    assert compared(expected, expected, llama, ~in_answers)["llama_agreement"] == 1.0


def test_texts_are_those_of_validation_first_and_say_where_answers_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = {
        CALIBRATION: write_conversations(tmp_path / "calibration", 6),
        VALIDATION: write_conversations(tmp_path / "validation", 3, seed=1),
    }
    joint = JointModel.of(Model("reference", save_wide_checkpoint(tmp_path / "wide"), data, tmp_path / "found", None))
    texts, in_answers = _texts(joint)
    assert len(in_answers) == sum(map(len, texts))
    assert len(texts) == 9
    processor = load_processor(joint.path)
    (batch,) = make_batches([replace(joint.validation[0], image=None)], processor, batch_size=1)
    expected = [token for x in batch.spans for token in batch.inputs["input_ids"][0, x.start : x.stop].tolist()]
    own = np.flatnonzero(in_answers[: len(texts[0])])
    assert [texts[0][int(place) + 1] for place in own] == expected
    monkeypatch.setattr(second_order_written, "NUM_POSITIONS", len(own) + 1)
    fewer, places = _texts(joint)
    assert fewer == texts[:2]
    assert places.tolist() == in_answers[: len(texts[0]) + len(texts[1])].tolist()


def test_figures_of_what_is_read_back_worked_by_hand() -> None:
    def row(plan: str, logits: float, agreement: float) -> dict[str, object]:
        said = {"model": "reference", "kl_difference": logits, "positions": 5000}
        return {**said, "plan": plan, "logit_difference": logits, "llama_agreement": agreement}

    found = summary_of(reload_figures([row("8_bits", 0.0, 0.99), row("4_bits", 0.01, 0.89)]))
    assert found["reload_logit_difference"] == 0.01
    assert (found["llama_agreement_8_bits"], found["llama_agreement_4_bits"]) == (0.99, 0.89)
    assert {name for name, holds in found["holds"].items() if not holds} == {
        "reload_logit_difference_at_most_0.0001",
        "reload_kl_difference_at_most_0.001",
        "llama_agreement_4_bits_at_least_0.9",
    }


def test_a_reconstruction_of_pictures_is_measured_as_a_whole(tmp_path: Path) -> None:
    steps = Steps(tmp_path / "steps")
    (row,) = memory_rows(tmp_path, steps, 2, TINY)
    assert row["calibration_tokens"] > 2 * 576
    assert row["projections"] == 4
    assert row["lost_output"] < row["lost_output_without"]
    assert row["output_bytes"] < row["input_bytes"]
    found = summary_of(memory_figures([row]))
    assert 0.1 < found["reconstruct_peak_rss_gb"] < 2.0
    assert found["reconstruct_minutes"] > 0
    assert found["holds"] == {"reconstruct_peak_rss_gb_at_most_2": True}
    assert [path.name for path in tmp_path.iterdir()] == ["steps"]
    assert memory_rows(tmp_path, steps, 2, TINY) == [row]
