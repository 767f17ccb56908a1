"""The evaluator's numbers are those of really cutting the model and running it."""

from pathlib import Path

import pytest
import torch

from pruning.anatomy_reader import read_anatomy
from pruning.batches import make_batches
from pruning.checkpoint import load_model, load_processor
from pruning.conversations import Conversation
from pruning.errors import InputError
from pruning.evaluation import ConfigurationEvaluator, evaluate_model
from pruning.generation import generate_answers
from pruning.importance import channel_scores
from pruning.ranking import Ranking
from pruning.surgery import cut_ffns
from tests.pruning.test_families import random_ranking


@pytest.mark.parametrize("widths", [[48, 48, 48, 48], [16, 8, 48, 40], [8, 8, 8, 8]])
def test_prefix_slices_equal_real_cuts(checkpoint: Path, conversations: list[Conversation], widths: list[int]) -> None:
    batches = make_batches(conversations, load_processor(checkpoint), batch_size=4)
    ranking = random_ranking(read_anatomy(checkpoint))
    sliced = ConfigurationEvaluator(load_model(checkpoint), batches, ranking).evaluate(widths)
    cut = load_model(checkpoint)
    cut_ffns(cut, widths, ranking)
    real = evaluate_model(cut, batches, load_model(checkpoint))
    assert sliced.kl == pytest.approx(real.kl, rel=1e-3, abs=1e-7)
    assert sliced.nll == pytest.approx(real.nll, rel=1e-5)
    assert (sliced.accuracy, sliced.num_tokens, sliced.num_answers) == (
        real.accuracy,
        real.num_tokens,
        real.num_answers,
    )


def test_the_evaluator_leaves_the_function_of_the_model_unchanged(
    checkpoint: Path, conversations: list[Conversation]
) -> None:
    batches = make_batches(conversations, load_processor(checkpoint))
    model = load_model(checkpoint)
    evaluator = ConfigurationEvaluator(model, batches, random_ranking(read_anatomy(checkpoint)))
    evaluator.evaluate([8, 8, 8, 8])
    assert evaluator([evaluator.dense_widths])[0].kl == 0.0
    assert evaluate_model(model, batches, load_model(checkpoint)).kl == pytest.approx(0.0, abs=1e-9)


def test_impossible_widths_are_refused(checkpoint: Path, conversations: list[Conversation]) -> None:
    batches = make_batches(conversations[:1], load_processor(checkpoint))
    evaluator = ConfigurationEvaluator(load_model(checkpoint), batches, random_ranking(read_anatomy(checkpoint)))
    for widths in ([0, 8, 8, 8], [49, 8, 8, 8], [8, 8, 8]):
        with pytest.raises(InputError, match="width between 1 and dense"):
            evaluator.evaluate(widths)


def test_spans_cover_exactly_the_answers_and_their_end(checkpoint: Path, conversations: list[Conversation]) -> None:
    processor = load_processor(checkpoint)
    (batch,) = make_batches(conversations, processor)
    answers = [turn.answer for c in conversations for turn in c.turns]
    texts = [processor.tokenizer.decode(batch.inputs["input_ids"][s.row, s.start : s.stop]) for s in batch.spans]
    assert texts == [f"{answer}<eos>" for answer in answers]


def test_batching_does_not_change_metrics(checkpoint: Path, conversations: list[Conversation]) -> None:
    processor, model = load_processor(checkpoint), load_model(checkpoint)
    one = evaluate_model(model, make_batches(conversations, processor, batch_size=1))
    all_at_once = evaluate_model(model, make_batches(conversations, processor, batch_size=16))
    assert one.nll == pytest.approx(all_at_once.nll, rel=1e-5)


def test_teacher_forced_accuracy_is_what_greedy_generation_gives(
    checkpoint: Path, conversations: list[Conversation]
) -> None:
    """A model that was made to know half of the answers: both measures find exactly those."""
    processor, model = load_processor(checkpoint), load_model(checkpoint)
    batches = make_batches(conversations, processor)
    torch.manual_seed(0)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    (batch,) = batches
    for _ in range(12):
        logits = model(**batch.inputs).logits
        known = batch.spans[: len(batch.spans) // 2]
        loss = torch.stack(
            [
                torch.nn.functional.cross_entropy(
                    logits[s.row, s.start - 1 : s.stop - 1], batch.inputs["input_ids"][s.row, s.start : s.stop]
                )
                for s in known
            ]
        ).mean()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    model.eval()
    forced = evaluate_model(model, batches).accuracy
    generated = generate_answers(model, processor, conversations, batch_size=5)
    assert forced > 0
    assert generated.accuracy == pytest.approx(forced)
    assert generated.num_answers == 12


def test_scores_are_weight_norm_times_activation_size(checkpoint: Path, conversations: list[Conversation]) -> None:
    processor, model = load_processor(checkpoint), load_model(checkpoint)
    batches = make_batches(conversations, processor, batch_size=3)
    scores = channel_scores(model, batches)
    # The same by another way: real activations, row by row without padding.
    down = model.get_decoder().layers[1].mlp.down_proj
    seen: list[torch.Tensor] = []
    handle = down.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    with torch.inference_mode():
        for batch in make_batches(conversations, processor, batch_size=1):
            model(**batch.inputs)
    handle.remove()
    inputs = torch.cat([x[0] for x in seen]).double()
    expected = down.weight.double().norm(dim=0) * inputs.square().mean(dim=0).sqrt()
    torch.testing.assert_close(torch.from_numpy(scores[1]), expected, rtol=1e-4, atol=1e-8)
    order = Ranking.from_scores(read_anatomy(checkpoint), scores).ffn[1]
    assert scores[1][order[0]] == scores[1].max()
    assert scores[1][order[-1]] == scores[1].min()
