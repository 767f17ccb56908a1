"""Where in a chat template a user speaks, and what ends that."""

from pathlib import Path

import pytest
from tokenizers import AddedToken

from pruning.data.user_turns import user_turn
from pruning.errors import CheckpointError
from tests.pruning.data.test_chat_rendering import chat_tokenizer
from tests.tiny_models import tiny_processor, tiny_tokenizer

ASKED = "{% for m in messages %}{{ m.content }}{% endfor %}"


@pytest.mark.parametrize(
    ("name", "eos", "before", "end"),
    [
        (
            "qwen2.5",
            "<|im_end|>",
            "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
            "<|im_start|>user\n",
            "<|im_end|>",
        ),
        ("llama-3", "<|eot_id|>", "<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>"),
    ],
)
def test_published_templates(name: str, eos: str, before: str, end: str) -> None:
    tokenizer = chat_tokenizer(name, eos=eos)
    tokenizer.add_tokens([AddedToken(end, special=True)])  # in none of the lists that name special tokens
    turn = user_turn(tokenizer)
    assert turn.before.endswith(before)
    assert turn.ends == {tokenizer.convert_tokens_to_ids(end)}
    assert turn.stop == ""


def test_text_ends_where_no_special_token_does() -> None:
    """As Vicuna's and LLaVA-1.5's: a space before the user's words belongs to the first of them."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "USER: {{ messages[0].content | trim }} ASSISTANT:"
    turn = user_turn(tokenizer)
    assert (turn.before, turn.ends, turn.stop) == ("USER:", frozenset(), "ASSISTANT:")


def test_thoughts_that_a_template_opens_are_not_waited_for() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "User: {{ messages[0].content }}\nAssistant: <think>\n"
    assert user_turn(tokenizer).stop == "Assistant:"


def test_a_marker_that_no_file_calls_special() -> None:
    """As DeepSeek's `<｜Assistant｜>`, after which the template may go on."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<|assistant|>"])
    tokenizer.chat_template = "<|user|>{{ messages[0].content }}<|assistant|><think>"
    turn = user_turn(tokenizer)
    assert turn.ends == {tokenizer.convert_tokens_to_ids("<|assistant|>")}
    assert turn.stop == ""


def test_a_picture_stands_before_the_words(tmp_path: Path) -> None:
    processor = tiny_processor()
    assert "<image>" in user_turn(processor, tmp_path / "any.png").before
    assert "<image>" not in user_turn(processor).before


@pytest.mark.parametrize("template", [ASKED, f"Q: {ASKED} again {ASKED}", "Q: something A:"])
def test_templates_without_a_place_for_one_user(template: str) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(CheckpointError, match="must write something before what a user says, and write that once"):
        user_turn(tokenizer)
