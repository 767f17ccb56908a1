"""Answers drawn at random: how often each token comes, and what decides which."""

import pytest
import torch

from pruning.data.prompts import Prompt
from pruning.errors import InputError
from pruning.measuring.answers import batch_key, question_of
from pruning.measuring.drawing import Drawing, drawn_tokens
from pruning.measuring.generation import generate_tokens
from tests.tiny_models import TEXT_TEMPLATE, tiny_model, tiny_tokenizer

NUM_DRAWS = 20_000


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_tokens_come_as_often_as_the_model_has_them(temperature: float) -> None:
    """Within four standard errors each; one that is ruled out never comes."""
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, -torch.inf])
    expected = (logits / temperature).softmax(dim=0)
    process = drawn_tokens(temperature, [Drawing(seed=5).generator("answer")] * NUM_DRAWS)
    scores = process(None, logits.expand(NUM_DRAWS, -1))
    assert (scores.isfinite().sum(dim=1) == 1).all()
    drawn = scores.argmax(dim=1)
    found = drawn.bincount(minlength=5) / NUM_DRAWS
    assert found[4] == 0
    assert ((found - expected).abs() <= 4 * (expected * (1 - expected) / NUM_DRAWS).sqrt()).all()


def test_an_answer_depends_on_its_name_and_the_seed_alone() -> None:
    model = tiny_model("llama")
    ids = torch.tensor([[5, 6, 7]])

    def of(*names: str, seed: int = 0) -> list[list[int]]:
        draw = drawn_tokens(1.0, [Drawing(seed=seed).generator(name) for name in names])
        inputs = {"input_ids": ids.repeat(len(names), 1)}
        return [row.tolist() for row in generate_tokens(model, inputs, max_new_tokens=12, draw=draw)]

    before = torch.get_rng_state()
    first, second = of("a", "b")
    assert first != second
    assert (of("a"), of("b", "a")) == ([first], [second, first])
    assert of("a", seed=1) != [first]
    assert torch.equal(torch.get_rng_state(), before)


def test_a_cold_draw_is_the_greedy_answer() -> None:
    model, inputs = tiny_model("llama"), {"input_ids": torch.tensor([[5, 6, 7]])}
    draw = drawn_tokens(1e-3, [Drawing().generator("a")])
    (drawn,), (greedy,) = (generate_tokens(model, inputs, max_new_tokens=12, draw=x) for x in (draw, None))
    assert drawn.tolist() == greedy.tolist()


def test_batches_are_told_apart_by_what_decides_their_draws() -> None:
    """A draft has many batches of the same texts, where there are more samples than fit into one."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEXT_TEMPLATE
    batches = [
        [question_of(index, prompt.asked([]), tokenizer)]
        for index, prompt in enumerate(Prompt("7", None, ("what?",)).copies(2))
    ]
    drawings = [Drawing(), Drawing(seed=1), Drawing(temperature=0.5)]
    keys = [batch_key("", batch, drawing) for batch in batches for drawing in drawings]
    assert len({*keys, batch_key("", batches[0])}) == 7
    assert batch_key("", batches[0]) == batch_key("", batches[1])  # of greedy ones the text decides


@pytest.mark.parametrize("number", [0.0, 0.3, 1.0 - 2**-53])
def test_whatever_is_drawn_is_a_token_that_may_come(number: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where sums of a long vocabulary round, at the ends of the numbers; what is ruled out lies at both ends, too."""
    logits = torch.zeros(2, 150_000)
    logits[:, :3], logits[:, -3:] = -torch.inf, -torch.inf
    monkeypatch.setattr("torch.rand", lambda *_, **named: torch.tensor([number], dtype=named["dtype"]))
    tokens = drawn_tokens(1.0, [Drawing().generator("a")] * 2)(None, logits).argmax(dim=1).tolist()
    assert tokens == [3 + min(int(number * 149_994), 149_993)] * 2


@pytest.mark.parametrize("temperature", [0.0, -1.0, 1e-40, 1e40, float("nan"), float("inf")])
def test_no_such_temperature(temperature: float) -> None:
    with pytest.raises(InputError, match="the temperature of what is drawn"):
        Drawing(temperature)
