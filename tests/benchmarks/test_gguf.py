"""The comparison with llama.cpp: its prompts, and a small run of it where llama-cpp-python is installed."""

import json
from pathlib import Path

import pytest

from benchmarks.gguf import NUM_PROMPTS, REFERENCE, gguf_agreement, knowledge_prompts
from reference.facts import knowledge_base


def test_prompts_are_questions_that_need_no_picture() -> None:
    prompts = knowledge_prompts(NUM_PROMPTS)
    assert len(set(prompts)) == NUM_PROMPTS
    assert all(x.startswith("<|user|>") and x.endswith("?<|assistant|>") and "<image>" not in x for x in prompts)
    people = knowledge_base().people
    assert all(any(word.removesuffix("'s") in people for word in prompt.split()) for prompt in prompts)
    questions = (REFERENCE / "data" / "validation.json").read_text()
    assert all(json.dumps(x.removeprefix("<|user|>").removesuffix("<|assistant|>"))[1:-1] in questions for x in prompts)


def test_more_prompts_than_there_are() -> None:
    with pytest.raises(ValueError, match="10000 are needed"):
        knowledge_prompts(10_000)


def test_a_small_run(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    summary, rows = gguf_agreement(tmp_path, num_prompts=20, num_pictures=4)
    assert summary["gguf_agreement"] >= 0.95
    assert {row["architecture"] for row in rows} == {"deci"}
    assert len({tuple(row["ffn_widths"]) for row in rows}) == 2
    assert {(len(row["kv_heads"]), min(row["kv_heads"])) for row in rows} == {(12, 4), (12, 3), (11, 0)}
    exact = [row for row in rows if row["type"] == "f32"]
    assert all(row["encoded_differently"] == 0 and row["max_logit_difference"] < 0.2 for row in exact)
