"""Greedy generation: nothing of a folder's generation config has a say but its special tokens."""

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from pruning.checkpoints.loading import load_model, load_processor
from pruning.data.conversations import Conversation
from pruning.errors import CheckpointError
from pruning.measuring.generation import generate_answers, generate_tokens, greedy_config
from tests.pruning.cut_models import text_inputs

SETTINGS: list[dict[str, Any]] = [
    {"repetition_penalty": 1.7},
    {"no_repeat_ngram_size": 1},
    {"min_length": 30},
    {"min_new_tokens": 5},
    {"do_sample": True, "temperature": 5.0, "top_k": 3, "top_p": 0.5},
    {"forced_bos_token_id": 9},
    {"forced_eos_token_id": 9},
    {"suppress_tokens": list(range(7, 200))},
    {"begin_suppress_tokens": list(range(7, 200))},
    {"bad_words_ids": [[x] for x in range(7, 200)]},
    {"sequence_bias": [[[7], 50.0]]},
    {"num_beams": 3, "early_stopping": True, "length_penalty": 2.0},
    {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
    {"num_return_sequences": 2, "num_beams": 2},
    {"penalty_alpha": 0.6, "top_k": 4},
    {"guidance_scale": 3.0},
    {"cache_implementation": "static"},
    {"cache_implementation": "quantized"},
    {"cache_implementation": "bogus"},
    {"max_new_tokens": -3},
    {"use_cache": False},
    {"max_time": 0.0},
    {"max_length": 3},
    {"max_new_tokens": 1},
    {"stop_strings": ["e", "s"]},
    {"renormalize_logits": True, "remove_invalid_values": True},
    {"prompt_lookup_num_tokens": 3},
    {"dola_layers": "high"},
    {"exponential_decay_length_penalty": [1, 2.0]},
    {"return_dict_in_generate": True, "output_scores": True},
    {"token_healing": True},
    {"watermarking_config": {"bias": 5.0}},
    {"assistant_confidence_threshold": 0.1, "num_assistant_tokens": 2, "is_assistant": True},
]
NEW_TOKENS = 6


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "copy"))


def write(folder: Path, **settings: Any) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 2, "pad_token_id": 0, **settings}))


def answer_of(folder: Path) -> list[int]:
    inputs = text_inputs()
    return generate_tokens(load_model(folder), inputs, max_new_tokens=NEW_TOKENS)[0].tolist()


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda x: ",".join(map(str, x)))
def test_no_setting_has_a_say(copy: Path, settings: dict[str, Any]) -> None:
    write(copy)
    plain = answer_of(copy)
    write(copy, **settings)
    assert answer_of(copy) == plain
    assert len(plain) == NEW_TOKENS


def test_the_answer_is_the_most_likely_token_each_time(checkpoint: Path) -> None:
    model, inputs = load_model(checkpoint), text_inputs()
    ids = inputs["input_ids"]
    for token in generate_tokens(model, inputs, max_new_tokens=NEW_TOKENS)[0]:
        with torch.inference_mode():
            logits = model(input_ids=ids, use_cache=False).logits
        assert int(logits[0, -1].argmax()) == int(token)
        ids = torch.cat([ids, token.view(1, 1)], dim=1)


def test_special_tokens_are_kept_and_answers_end_at_them(copy: Path) -> None:
    write(copy)
    plain = answer_of(copy)
    other = next(x for x in plain if x != plain[0])
    first = plain.index(other)
    write(copy, eos_token_id=[2, other], bos_token_id=5, decoder_start_token_id=6)
    model = load_model(copy)
    config = greedy_config(model, 3)
    assert (config.eos_token_id, config.pad_token_id, config.bos_token_id) == ([2, other], 0, 5)
    assert (config.decoder_start_token_id, config.max_new_tokens) == (6, 3)
    assert answer_of(copy) == plain[: first + 1]
    assert model.generation_config.eos_token_id == [2, other]  # the model's own is as it was


def test_padding_that_the_tokenizer_does_not_call_special_is_no_part_of_an_answer(
    copy: Path, conversations: list[Conversation]
) -> None:
    write(copy)
    some = conversations[-1:]
    plain = generate_answers(load_model(copy), load_processor(copy), some)
    write(copy, pad_token_id=20)
    assert generate_answers(load_model(copy), load_processor(copy), some).answers == plain.answers


@pytest.mark.parametrize("pad", [-1, 100_000])
def test_padding_that_is_no_token_is_the_end_of_text(copy: Path, pad: int) -> None:
    write(copy, pad_token_id=pad)
    assert greedy_config(load_model(copy), 3).pad_token_id == 2


@pytest.mark.parametrize("content", ["[]", "{", '"x"', "", "\0", "[" * 100_000])
def test_a_malformed_file_is_one_line_with_its_name(copy: Path, content: str) -> None:
    (copy / "generation_config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"generation_config\.json must be a JSON object"):
        load_model(copy)


@pytest.mark.parametrize("eos", ["</s>", [[2]], 2.5, True])
def test_an_end_of_text_that_is_no_id_is_refused(copy: Path, eos: object) -> None:
    write(copy, eos_token_id=eos)
    with pytest.raises(CheckpointError, match=r"generation_config\.json.*eos_token_id"):
        load_model(copy)


def test_special_tokens_of_a_file_that_transformers_cannot_read_are_kept(copy: Path) -> None:
    write(copy, eos_token_id=[2, 9], bos_token_id=5, cache_implementation="bogus")
    model = load_model(copy)
    config = greedy_config(model, 3)
    assert (config.eos_token_id, config.pad_token_id, config.bos_token_id) == ([2, 9], 0, 5)
    model.save_pretrained(copy / "again")
    assert greedy_config(load_model(copy / "again"), 3).eos_token_id == [2, 9]


def test_a_broken_model_gives_no_answer(checkpoint: Path) -> None:
    model = load_model(checkpoint)
    with torch.no_grad():
        model.get_decoder().layers[1].mlp.down_proj.weight[0, 0] = torch.nan
    with pytest.raises(CheckpointError, match="logits must be numbers"):
        generate_tokens(model, text_inputs(), max_new_tokens=3)


def always(model: Any, logits: Sequence[Mapping[int, float]], rest: float = 0.0) -> None:
    """From now on the model's logits are these, a step each and the last for ever, `rest` for other tokens."""
    steps = iter(logits)
    now: dict[int, float] = {}

    def forward(_module: object, _inputs: object, output: Any) -> Any:
        now.update(next(steps, {}))
        output.logits = torch.full_like(output.logits, rest)
        for token, value in now.items():
            output.logits[..., token] = value
        return output

    model.register_forward_hook(forward)


@pytest.mark.parametrize("rest", [math.inf, -math.inf, math.nan])
def test_what_is_no_number_is_no_answer(checkpoint: Path, conversations: list[Conversation], rest: float) -> None:
    model = load_model(checkpoint)
    always(model, [], rest)
    with pytest.raises(CheckpointError, match="logits must be numbers"):
        generate_answers(model, load_processor(checkpoint), conversations[-1:])


def test_a_model_may_rule_tokens_out(checkpoint: Path) -> None:
    model = load_model(checkpoint)
    always(model, [{20: 1.0}], -math.inf)
    assert generate_tokens(model, text_inputs(), max_new_tokens=2)[0].tolist() == [20, 20]


def test_an_answer_ends_where_the_chat_template_ends_it(checkpoint: Path, conversations: list[Conversation]) -> None:
    model, processor = load_model(checkpoint), load_processor(checkpoint)
    processor.chat_template = str(processor.chat_template).replace("<eos>", "<bos>")
    always(model, [{1: 1.0}, {1: 0.0, 20: 1.0}])  # goes on after its end
    report = generate_answers(model, processor, conversations[-1:], batch_size=1)
    assert report.answers[0][0] == ""
