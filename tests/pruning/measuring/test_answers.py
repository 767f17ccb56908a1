"""A model's own answers: which prompts share a batch, where an answer ends, and what is kept of it."""

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from pruning.data.chat_rendering import turn_ends
from pruning.data.conversations import Conversation, Turn
from pruning.errors import CheckpointError, DatasetError
from pruning.measuring.answers import Answer, Question, answer_batch, batch_key, batches_of, question_of
from pruning.measuring.generation import greedy_config
from tests.tiny_models import TEXT_TEMPLATE, tiny_model, tiny_processor, tiny_tokenizer

EOS = 2


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEXT_TEMPLATE
    return tokenizer


def ask(text: str, *, index: int = 0, image: Path | None = None) -> Conversation:
    return Conversation(str(index), image, (Turn(text, ""),))


def saying(tokenizer: PreTrainedTokenizerFast, *answers: str) -> PreTrainedModel:
    """A model that says `answers`, one a row, whatever it is asked: `generate` is all that is replaced."""
    model = tiny_model("llama")
    rows = [tokenizer(answer, add_special_tokens=False)["input_ids"] for answer in answers]
    longest = max(map(len, rows))
    said = torch.tensor([row + [0] * (longest - len(row)) for row in rows])

    def generate(input_ids: torch.Tensor, **_: object) -> torch.Tensor:
        return torch.cat([input_ids, said], dim=1)

    model.generate = generate
    return model


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        (" red seven<eos>", Answer("red seven", False)),
        ("red<eos>blue<eos>", Answer("red", False)),
        ("red seven", Answer("red seven", True)),
        ("<eos>", Answer("", False)),
        (" \n<eos>", Answer("", False)),
        ("<think>red or blue?</think>\n\nblue<eos>", Answer("blue", False)),
        ("<think>red or blue?", Answer("", True)),
        ("re<image>d<eos>", Answer("red", False)),
        ("<video>red<eos>", Answer("red", False)),
        ("what is it ?<eos>", Answer("what is it ?", False)),
    ],
)
def test_what_is_kept_of_an_answer(tokenizer: PreTrainedTokenizerFast, said: str, kept: Answer) -> None:
    question = question_of(0, ask("what?"), tokenizer)
    found = answer_batch(saying(tokenizer, said), tokenizer, [question], max_new_tokens=16, ends=set())
    assert found == [kept]


def test_a_character_that_was_cut_in_the_middle_goes(tokenizer: PreTrainedTokenizerFast) -> None:
    model = saying(tokenizer, "redé")
    whole = model.generate
    model.generate = lambda **inputs: whole(**inputs)[:, :-1]
    question = question_of(0, ask("what?"), tokenizer)
    assert answer_batch(model, tokenizer, [question], max_new_tokens=16, ends=set()) == [Answer("red", True)]


def test_reasoning_that_the_prompt_began_is_no_answer(tokenizer: PreTrainedTokenizerFast) -> None:
    model = saying(tokenizer, "red or blue?")
    question = Question(0, ask("what?"), "what?<think>\n", 3)
    assert answer_batch(model, tokenizer, [question], max_new_tokens=16, ends=set()) == [Answer("", True)]


def test_the_templates_end_of_turn_ends_an_answer(tokenizer: PreTrainedTokenizerFast) -> None:
    assert turn_ends(tokenizer) == {EOS}
    assert turn_ends(tiny_processor()) == {EOS}
    plain = tiny_tokenizer()
    plain.chat_template = TEXT_TEMPLATE.replace("<eos>", " END ")
    assert turn_ends(plain) == set()
    model = saying(tokenizer, "red<|user|>blue<eos>")
    question = question_of(0, ask("what?"), tokenizer)
    user = tokenizer.convert_tokens_to_ids("<|user|>")
    assert answer_batch(model, tokenizer, [question], max_new_tokens=16, ends={user}) == [Answer("red", False)]


def test_batches_are_of_like_length_and_pictures_stand_apart(tmp_path: Path) -> None:
    lengths = [5, 1, 4, 2, 3]
    texts = [Question(index, ask("q"), "q", length) for index, length in enumerate(lengths)]
    picture = Question(5, ask("q", image=tmp_path / "a.png"), "q", 0)
    found = [[question.index for question in batch] for batch in batches_of([picture, *texts], 2)]
    assert found == [[1, 3], [4, 2], [0], [5]]


def test_a_batch_is_told_by_texts_pictures_and_settings(tmp_path: Path) -> None:
    image = tmp_path / "a.png"
    image.write_bytes(b"one")
    one, other = Question(0, ask("q", image=image), "q", 1), Question(1, ask("r"), "r", 1)
    keys = {
        batch_key("s", [one, other]),
        batch_key("s", [other, one]),
        batch_key("t", [one, other]),
        batch_key("s", [one]),
    }
    image.write_bytes(b"two")
    keys.add(batch_key("s", [one, other]))
    assert len(keys) == 5
    image.unlink()
    with pytest.raises(DatasetError, match=r"a\.png"):
        batch_key("s", [one])


def test_greedy_whatever_the_folder_says(tokenizer: PreTrainedTokenizerFast) -> None:
    """Each of these would change what this model says, or end in an error."""
    model = tiny_model("llama")
    question = question_of(0, ask("what is it?"), tokenizer)
    plain = answer_batch(model, tokenizer, [question], max_new_tokens=12, ends=set())
    own = model.generation_config
    for name, value in {
        "repetition_penalty": 5.0,
        "no_repeat_ngram_size": 1,
        "min_new_tokens": 12,
        "suppress_tokens": list(range(3, 200)),
        "do_sample": True,
        "temperature": 9.0,
        "num_beams": 3,
        "use_cache": False,
    }.items():
        model.generation_config = type(own)(**{**own.to_diff_dict(), name: value})
        assert answer_batch(model, tokenizer, [question], max_new_tokens=12, ends=set()) == plain, name
    model.generation_config = type(own)(eos_token_id=[7, 8], pad_token_id=5)
    config = greedy_config(model, 12)
    assert (config.eos_token_id, config.pad_token_id, config.max_new_tokens) == ([7, 8], 5, 12)


def test_what_cannot_be_asked(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    model = tiny_model("llama")
    question = question_of(0, ask("what is it?"), tokenizer)
    model.config.max_position_embeddings = question.num_tokens + 11
    with pytest.raises(DatasetError, match=f"id 0: {question.num_tokens} tokens and 12 new ones"):
        answer_batch(model, tokenizer, [question], max_new_tokens=12, ends=set())
    answer_batch(model, tokenizer, [question], max_new_tokens=11, ends=set())
    with pytest.raises(DatasetError, match="without images"):
        question_of(0, ask("what?", image=tmp_path / "a.png"), tokenizer)
    model.set_input_embeddings(torch.nn.Embedding(4, 32))
    with pytest.raises(CheckpointError, match=r"must take what its processor makes.*conversation 0"):
        answer_batch(model, tokenizer, [question], max_new_tokens=11, ends=set())


def test_a_model_without_a_chat_template() -> None:
    with pytest.raises(CheckpointError, match=r"must have a chat template.*instruction-tuned"):
        question_of(0, ask("what?"), tiny_tokenizer())
    processor = tiny_processor()
    processor.chat_template = None
    with pytest.raises(CheckpointError, match="must have a chat template"):
        turn_ends(processor)
