"""The evaluator against real cuts: every family, both attention implementations, bfloat16, and several threads."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import DENSE, Architecture, Option, Site, Sublayer
from pruning.anatomy.decoder_view import decoder_view
from pruning.checkpoints.anatomy_reader import read_anatomy
from pruning.checkpoints.loading import load_model
from pruning.cutting.rewriting.sparsity import wanda
from pruning.cutting.surgery import cut_model
from pruning.data.batches import Batch, make_batches
from pruning.data.conversations import Conversation
from pruning.measuring.evaluation import ConfigurationEvaluator, evaluate_model, stay_alone
from pruning.measuring.masked_weights import MaskedWeights
from pruning.measuring.metrics import Metrics
from pruning.planning.ranking import Ranking
from tests.pruning.cut_models import WIDTHS, random_ranking
from tests.pruning.forward.test_compensation import compensating_ranking
from tests.tiny_models import (
    BUILDERS,
    IMAGE_FAMILIES,
    TEXT_TEMPLATE,
    tiny_model,
    tiny_processor,
    tiny_tokenizer,
    with_pictures,
)
from tests.tiny_models.checkpoints import saved_once

# Gemma 2's soft caps are inside its attention, which PyTorch's own knows nothing of.
SDPA = [family for family in BUILDERS if family not in ("gemma2", "paligemma2")]


@pytest.fixture
def two_threads() -> Iterator[None]:
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


def save_lively_model(folder: Path, family: str, dtype: torch.dtype = torch.float32) -> Path:
    """A model whose layers do much more than pass on what they get, so that no difference hides behind the residual."""

    def save(folder: Path) -> None:
        model = tiny_model(family)
        for module in [*decoder_view(model).layers, model.get_output_embeddings()]:
            for linear in module.modules():
                if isinstance(linear, nn.Linear):
                    nn.init.normal_(linear.weight, std=0.2)
                    if linear.bias is not None:
                        nn.init.normal_(linear.bias, std=0.2)
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype)
        model.save_pretrained(folder)

    return saved_once(folder, ("lively", family, dtype), save)


class Lively:
    """Lively models of all families and what they are shown, made and read once."""

    def __init__(self, folder: Path, conversations: list[Conversation]) -> None:
        self._folder = folder
        self.folder = cache(self._saved)
        self.anatomy = cache(self._anatomy)
        self.batches = cache(lambda family: batches_for(family, conversations))
        self.dense = cache(self._loaded)

    def _saved(self, family: str, dtype: torch.dtype = torch.float32) -> Path:
        return save_lively_model(self._folder / f"{family}-{dtype}", family, dtype)

    def _anatomy(self, family: str) -> ModelAnatomy:
        return read_anatomy(self.folder(family))

    def _loaded(self, family: str, dtype: torch.dtype = torch.float32, attention: str = "default") -> PreTrainedModel:
        """Read-only."""
        more = {} if attention == "default" else {"attn_implementation": attention}
        return load_model(self.folder(family, dtype), **more)

    def model(self, *which: Any) -> PreTrainedModel:
        """A copy of `dense`, to be changed."""
        return deepcopy(self.dense(*which))


@pytest.fixture(scope="module")
def lively(tmp_path_factory: pytest.TempPathFactory, conversations: list[Conversation]) -> Lively:
    return Lively(tmp_path_factory.mktemp("lively"), conversations)


def batches_for(family: str, conversations: list[Conversation], *, batch_size: int = 4) -> list[Batch]:
    """Padded batches; with images, if the family sees, as its vision tower takes them."""
    if family in IMAGE_FAMILIES:
        batches = make_batches(conversations, tiny_processor(), batch_size=batch_size)
        return [with_pictures(family, batch) for batch in batches]
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEXT_TEMPLATE
    return make_batches([replace(c, image=None) for c in conversations], tokenizer, batch_size=batch_size)


def assert_slices_equal_cuts(lively: Lively, ranking: Ranking, which: tuple[Any, ...], *, rel: float = 1e-3) -> None:
    """The metrics of `WIDTHS` by the evaluator, from a cached prefix where there is one, and by really cutting."""
    batches = lively.batches(which[0])
    evaluator = ConfigurationEvaluator(lively.model(*which), batches, ranking)
    evaluator.evaluate([*WIDTHS[:2], 16, 48])
    cut = lively.model(*which)
    cut_model(cut, lively.anatomy(which[0]).architecture(WIDTHS), ranking)
    assert_equal(evaluator.evaluate(WIDTHS), evaluate_model(cut, batches, lively.dense(*which)), rel=rel)


def assert_equal(sliced: Metrics, real: Metrics, *, rel: float = 1e-3) -> None:
    assert real.kl > 0.05
    assert sliced.kl == pytest.approx(real.kl, rel=rel)
    assert sliced.nll == pytest.approx(real.nll, rel=rel)
    assert sliced.agreement == pytest.approx(real.agreement, abs=1.5 / real.num_tokens)  # one near tie
    assert (sliced.accuracy, sliced.num_tokens, sliced.num_answers) == (
        real.accuracy,
        real.num_tokens,
        real.num_answers,
    )


@pytest.mark.parametrize("family", ["llava-llama", "phi3", "qwen2"])  # apart, fused, with biases
def test_masks_equal_weights_that_are_zeroed(family: str, conversations: list[Conversation], tmp_path: Path) -> None:
    """Of half the sub-layers, in a model whose units stand in another order."""
    folder = save_lively_model(tmp_path, family)
    batches, anatomy = batches_for(family, conversations), read_anatomy(folder)
    generator = torch.Generator().manual_seed(0)
    densities = {Site(0, Sublayer.ATTENTION): 0.5, Site(1, Sublayer.FFN): 0.4, Site(2, Sublayer.ATTENTION): 0.8}
    zeroed, squares = load_model(folder), {}
    view = decoder_view(zeroed)
    for site, density in densities.items():
        linears = [view.projection(site.layer, name) for name in view.family.linears(site.sublayer)]
        squares[site] = [torch.rand(x.in_features, generator=generator).double() for x in linears]
        for linear, own in zip(linears, squares[site], strict=True):
            linear.weight.data = wanda(linear.weight.data, own, density)
    options = {
        site: Option(anatomy.layers[site.layer].units(site.sublayer), density=density)
        for site, density in densities.items()
    }
    ranking, masker = random_ranking(anatomy), MaskedWeights(squares)
    evaluator = ConfigurationEvaluator(load_model(folder), batches, ranking, masker=masker)
    (metrics,) = evaluator([Architecture.of(options)])
    assert_equal(metrics, evaluate_model(zeroed, batches, load_model(folder)))
    assert evaluator([DENSE])[0].kl == 0.0


@pytest.mark.parametrize(
    ("family", "attention"), [(family, "sdpa") for family in SDPA] + [(f, "eager") for f in BUILDERS]
)
def test_slices_equal_cuts(family: str, attention: str, lively: Lively) -> None:
    ranking = random_ranking(lively.anatomy(family))
    assert_slices_equal_cuts(lively, ranking, (family, torch.float32, attention))


@pytest.mark.parametrize("family", BUILDERS)
def test_slices_equal_cuts_with_biases_that_compensate(family: str, lively: Lively) -> None:
    assert_slices_equal_cuts(lively, compensating_ranking(lively.anatomy(family)), (family,))


@pytest.mark.parametrize(
    ("family", "attention"), [*((family, "sdpa") for family in SDPA), ("llava-llama", "eager"), ("gemma2", "eager")]
)
def test_slices_equal_cuts_in_bfloat16(family: str, attention: str, lively: Lively) -> None:
    ranking = random_ranking(lively.anatomy(family))
    # Slices add channels up in the ranking's order, cuts in their own: rounding may differ where it is coarse.
    assert_slices_equal_cuts(lively, ranking, (family, torch.bfloat16, attention), rel=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llava-llama", "llava-mistral-window", "qwen2.5-vl"])
def test_two_threads_give_the_bits_of_one(
    family: str, dtype: torch.dtype, conversations: list[Conversation], tmp_path: Path, two_threads: None
) -> None:
    folder = save_lively_model(tmp_path, family, dtype)
    batches = batches_for(family, conversations, batch_size=2)
    assert len(batches) == 3
    ranking = random_ranking(read_anatomy(folder))
    cut = read_anatomy(folder).architecture
    configurations = [cut(widths) for widths in (WIDTHS, (16, 8, 8, 8), (48, 8, 48, 40), WIDTHS)]
    two = ConfigurationEvaluator(load_model(folder), batches, ranking)(configurations)
    torch.set_num_threads(1)
    one = ConfigurationEvaluator(load_model(folder), batches, ranking)(configurations)
    assert two == one
    assert one[0].kl > 0.05


def test_a_thread_of_rows_stays_alone_whatever_is_set_before_its_first_operation(two_threads: None) -> None:
    """It once took two where it was started for a row that another thread had done by then."""
    with ThreadPoolExecutor(1, initializer=stay_alone) as pool:
        pool.submit(int).result()
        torch.set_num_threads(2)
        assert pool.submit(torch.get_num_threads).result() == 1


@pytest.mark.parametrize("family", SDPA)
def test_no_padding_is_computed(family: str, lively: Lively) -> None:
    """Every family's layers take sequences side by side, but for attention that is not PyTorch's own."""
    model, batches = lively.model(family), lively.batches(family)
    real = sum(int(batch.inputs["attention_mask"].sum()) for batch in batches)
    assert real < sum(batch.inputs["attention_mask"].numel() for batch in batches)
    evaluator = ConfigurationEvaluator(model, batches, random_ranking(lively.anatomy(family)))
    tokens = [0] * len(evaluator.dense_widths)
    for index, layer in enumerate(decoder_view(model).layers):

        def count(_: nn.Module, args: tuple[torch.Tensor], index: int = index) -> None:
            tokens[index] += args[0].shape[:2].numel()

        layer.register_forward_pre_hook(count)
    evaluator.evaluate(WIDTHS)
    assert all(0 < count < real for count in tokens)  # the last token of an answer is predicted, not fed
