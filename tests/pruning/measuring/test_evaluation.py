"""The evaluator's numbers are those of really cutting the model and running it."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import DENSE, Architecture, Option, Site, Sublayer
from pruning.checkpoints.anatomy_reader import read_anatomy
from pruning.checkpoints.loading import load_model, load_processor
from pruning.cutting.surgery import cut_model
from pruning.data.batches import make_batches
from pruning.data.conversations import Conversation
from pruning.errors import InputError
from pruning.measuring.evaluation import ConfigurationEvaluator, evaluate_model
from pruning.measuring.generation import generate_answers
from pruning.planning.ranking import Ranking
from tests.pruning.cut_models import random_ranking
from tests.pruning.forward.test_compensation import compensating_ranking


@pytest.mark.parametrize("make_ranking", [random_ranking, compensating_ranking])
@pytest.mark.parametrize("widths", [[48, 48, 48, 48], [16, 8, 48, 40], [8, 8, 8, 8]])
def test_prefix_slices_equal_real_cuts(
    checkpoint: Path,
    conversations: list[Conversation],
    widths: list[int],
    make_ranking: Callable[[ModelAnatomy], Ranking],
) -> None:
    batches = make_batches(conversations, load_processor(checkpoint), batch_size=4)
    ranking = make_ranking(read_anatomy(checkpoint))
    evaluator = ConfigurationEvaluator(load_model(checkpoint), batches, ranking)
    evaluator.evaluate([8, 48, 16, 48])  # leaves nothing behind
    sliced = evaluator.evaluate(widths)
    cut = load_model(checkpoint)
    cut_model(cut, read_anatomy(checkpoint).architecture(widths), ranking)
    real = evaluate_model(cut, batches, load_model(checkpoint))
    assert sliced.kl == pytest.approx(real.kl, rel=1e-3, abs=1e-7)
    assert sliced.nll == pytest.approx(real.nll, rel=1e-5)
    assert (sliced.accuracy, sliced.num_tokens, sliced.num_answers) == (
        real.accuracy,
        real.num_tokens,
        real.num_answers,
    )


def test_what_is_measured_of_a_fold_is_what_it_is_alone(checkpoint: Path, conversations: list[Conversation]) -> None:
    processor, ranking = load_processor(checkpoint), random_ranking(read_anatomy(checkpoint))
    numbers = [index % 2 for index in range(len(conversations))]
    batches = make_batches(conversations, processor, batch_size=3)
    whole = ConfigurationEvaluator(load_model(checkpoint), batches, ranking, folds=numbers).evaluate([16, 8, 48, 40])
    assert whole.folds is not None
    for number, fold in enumerate(whole.folds):
        members = [c for c, of in zip(conversations, numbers, strict=True) if of == number]
        alone = ConfigurationEvaluator(load_model(checkpoint), make_batches(members, processor), ranking)
        found = alone.evaluate([16, 8, 48, 40])
        assert found.folds is None
        assert fold.kl == pytest.approx(found.kl, rel=1e-3)
        assert (fold.num_tokens, fold.num_answers) == (found.num_tokens, found.num_answers)
        assert (fold.accuracy, fold.agreement) == pytest.approx((found.accuracy, found.agreement))
    assert whole.folds[0].kl != pytest.approx(whole.folds[1].kl, rel=1e-2)
    tokens = [fold.num_tokens for fold in whole.folds]
    assert sum(tokens) == whole.num_tokens
    assert np.average([fold.kl for fold in whole.folds], weights=tokens) == pytest.approx(whole.kl, rel=1e-5)
    assert np.average([fold.agreement for fold in whole.folds], weights=tokens) == pytest.approx(whole.agreement)


def test_root_kl_is_the_mean_of_the_roots_of_the_tokens_kl(checkpoint: Path, conversations: list[Conversation]) -> None:
    processor, ranking, widths = load_processor(checkpoint), random_ranking(read_anatomy(checkpoint)), [16, 8, 48, 40]
    numbers = [index % 2 for index in range(len(conversations))]
    batches = make_batches(conversations, processor, batch_size=3)
    found = ConfigurationEvaluator(load_model(checkpoint), batches, ranking, folds=numbers).evaluate(widths)
    dense, cut = load_model(checkpoint), load_model(checkpoint)
    cut_model(cut, read_anatomy(checkpoint).architecture(widths), ranking)
    roots: dict[int, list[float]] = {0: [], 1: []}
    for batch in batches:
        with torch.inference_mode():
            p, q = (torch.log_softmax(model(**batch.inputs).logits.double(), dim=-1) for model in (dense, cut))
        kl = (p.exp() * (p - q)).sum(dim=-1)
        for span in batch.spans:
            fold = numbers[batch.conversations[span.row]]
            roots[fold] += kl[span.row, span.start - 1 : span.stop - 1].clamp(min=0.0).sqrt().tolist()
    assert found.folds is not None
    for number, of_fold in enumerate(found.folds):
        assert of_fold.root_kl == pytest.approx(np.mean(roots[number]), rel=1e-2)
    assert found.score == pytest.approx(np.mean(roots[0] + roots[1]) ** 2, rel=1e-2)
    assert found.score < 0.99 * found.kl  # the tokens differ: by Jensen's inequality


def test_the_evaluator_leaves_the_function_of_the_model_unchanged(
    checkpoint: Path, conversations: list[Conversation]
) -> None:
    batches = make_batches(conversations, load_processor(checkpoint))
    model = load_model(checkpoint)
    evaluator = ConfigurationEvaluator(model, batches, random_ranking(read_anatomy(checkpoint)))
    evaluator.evaluate([8, 8, 8, 8])
    assert evaluator([DENSE])[0].kl == 0.0
    # Sums are in another order now, which rounds differently; cutting costs 1e-5 and more here.
    assert evaluate_model(model, batches, load_model(checkpoint)).kl == pytest.approx(0.0, abs=1e-7)


def test_impossible_widths_are_refused(checkpoint: Path, conversations: list[Conversation]) -> None:
    batches = make_batches(conversations[:1], load_processor(checkpoint))
    evaluator = ConfigurationEvaluator(load_model(checkpoint), batches, random_ranking(read_anatomy(checkpoint)))
    for widths in ([-1, 8, 8, 8], [49, 8, 8, 8], [8, 8, 8]):
        with pytest.raises(InputError, match="width between 0 and dense"):
            evaluator.evaluate(widths)


@pytest.mark.parametrize(
    ("site", "option"),
    [
        (Site(0, Sublayer.FFN), Option(49)),
        (Site(0, Sublayer.FFN), Option(8, bits=4)),
        (Site(1, Sublayer.ATTENTION), Option(3)),
        (Site(4, Sublayer.FFN), Option(8)),
        (Site(4, Sublayer.ATTENTION), Option(0)),
    ],
)
def test_architectures_that_it_cannot_evaluate_are_refused(
    checkpoint: Path, conversations: list[Conversation], site: Site, option: Option
) -> None:
    batches = make_batches(conversations[:1], load_processor(checkpoint))
    evaluator = ConfigurationEvaluator(load_model(checkpoint), batches, random_ranking(read_anatomy(checkpoint)))
    with pytest.raises(InputError, match=rf"keeps FFN channels of its model.*'index': {site.layer}.*of 4 layers"):
        evaluator([Architecture.of({site: option})])


def test_groups_are_kept_in_the_rankings_order_alone(checkpoint: Path, conversations: list[Conversation]) -> None:
    batches = make_batches(conversations[:1], load_processor(checkpoint))
    ranking = replace(random_ranking(read_anatomy(checkpoint)), kv_groups=None)
    evaluator = ConfigurationEvaluator(load_model(checkpoint), batches, ranking)
    with pytest.raises(InputError, match="KV groups if the ranking orders them"):
        evaluator([Architecture.of({Site(1, Sublayer.ATTENTION): Option(1)})])
    (skipped,) = evaluator([Architecture.of({Site(1, Sublayer.ATTENTION): Option(0)})])  # none is none in any order
    assert skipped.kl > 0.0


@pytest.mark.parametrize("cache_bytes", [0, 40_000, 2**20])
def test_what_was_evaluated_before_does_not_change_a_number(
    checkpoint: Path, conversations: list[Conversation], cache_bytes: int
) -> None:
    batches = make_batches(conversations, load_processor(checkpoint), batch_size=2)
    ranking = random_ranking(read_anatomy(checkpoint))
    configurations = [(48, 48, 8, 8), (48, 48, 8, 48), (48, 16, 8, 48), (48, 48, 48, 8), (8, 8, 8, 8), (48, 48, 8, 8)]
    evaluator = ConfigurationEvaluator(load_model(checkpoint), batches, ranking, cache_bytes=cache_bytes)
    kept_answers = evaluator.cached_bytes
    assert kept_answers <= cache_bytes // 2
    together = evaluator([read_anatomy(checkpoint).architecture(widths) for widths in configurations])
    alone = [
        ConfigurationEvaluator(load_model(checkpoint), batches, ranking, cache_bytes=0).evaluate(widths)
        for widths in configurations
    ]
    assert together == alone
    assert evaluator.cached_bytes <= cache_bytes
    assert (evaluator.cached_bytes > kept_answers) == (cache_bytes > 0)


def test_an_evaluation_that_fails_leaves_nothing_behind(
    checkpoint: Path, conversations: list[Conversation], monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = make_batches(conversations, load_processor(checkpoint), batch_size=2)
    evaluator = ConfigurationEvaluator(load_model(checkpoint), batches, random_ranking(read_anatomy(checkpoint)))
    kept_answers = evaluator.cached_bytes
    expected = evaluator.evaluate([8, 16, 24, 32])
    layer = type(evaluator._view.layers[3])
    forward = layer.forward

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(layer, "forward", fail)
    with pytest.raises(KeyboardInterrupt):
        evaluator.evaluate([16, 16, 24, 32])
    monkeypatch.setattr(layer, "forward", forward)
    assert evaluator.cached_bytes == kept_answers
    assert evaluator.evaluate([8, 16, 24, 32]) == expected
    assert evaluator.evaluate(evaluator.dense_widths).kl == 0.0


def test_layers_of_a_known_prefix_are_not_run_again(checkpoint: Path, conversations: list[Conversation]) -> None:
    model = load_model(checkpoint)
    batches = make_batches(conversations, load_processor(checkpoint))
    evaluator = ConfigurationEvaluator(model, batches, random_ranking(read_anatomy(checkpoint)))
    runs = [0] * 4
    for index, layer in enumerate(model.get_decoder().layers):

        def count(*_: object, index: int = index) -> None:
            runs[index] += 1

        layer.register_forward_hook(count)
    evaluator.evaluate([16, 16, 16, 16])
    evaluator.evaluate([16, 16, 16, 8])
    evaluator.evaluate([16, 16, 8, 8])
    evaluator.evaluate([8, 16, 16, 16])
    assert [count / runs[0] for count in runs] == [1, 1, 1.5, 2]  # a layer is run once for each of the rows


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


def test_a_broken_model_is_not_a_perfect_one(checkpoint: Path, conversations: list[Conversation]) -> None:
    batches = make_batches(conversations, load_processor(checkpoint))
    broken = load_model(checkpoint)
    with torch.no_grad():
        broken.get_decoder().layers[1].mlp.down_proj.weight[0, 0] = torch.nan
    assert math.isnan(evaluate_model(load_model(checkpoint), batches, broken).kl)
    evaluator = ConfigurationEvaluator(broken, batches, random_ranking(read_anatomy(checkpoint)))
    assert math.isnan(evaluator.evaluate([48, 48, 48, 48]).kl)
