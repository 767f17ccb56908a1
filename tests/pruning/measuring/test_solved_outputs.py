"""What the evaluator says of reconstructed models: the same as models that were really cut and solved."""

from pathlib import Path

import pytest
import torch

from pruning.anatomy.architecture import Architecture, Option, Site, Sublayer
from pruning.checkpoints.anatomy_reader import anatomy_of
from pruning.checkpoints.loading import load_model, load_processor
from pruning.cutting.reconstruction import SolvedInMemory, reconstruct
from pruning.cutting.surgery import cut_model
from pruning.data.batches import Batch, make_batches, num_rows
from pruning.data.conversations import Conversation
from pruning.errors import CheckpointError
from pruning.forward.input_products import InputProducts, InputRole
from pruning.forward.layer_source import loaded_layers
from pruning.measuring.evaluation import ConfigurationEvaluator, evaluate_model
from pruning.measuring.second_order import MeasuredOn, SecondOrderStore, measure_second_order
from pruning.measuring.solved_outputs import SolvedOutputs
from tests.pruning.cut_models import random_ranking

OF = MeasuredOn("f" * 64, "w" * 64, "c" * 64)


@pytest.fixture
def batches(checkpoint: Path, conversations: list[Conversation]) -> list[Batch]:
    return make_batches(conversations, load_processor(checkpoint), batch_size=4)


@pytest.fixture
def products(checkpoint: Path, batches: list[Batch], tmp_path: Path) -> SecondOrderStore:
    store = SecondOrderStore(tmp_path / "products", OF)
    with loaded_layers(load_model(checkpoint)) as source:
        measure_second_order(source, batches, store, num_rows=num_rows(batches))
    return store


def architectures() -> list[Architecture]:
    """Channels, groups and a skip at once; and less of all of it."""
    one = {
        Site(0, Sublayer.FFN): Option(16),
        Site(1, Sublayer.ATTENTION): Option(1),
        Site(2, Sublayer.FFN): Option(0),
        Site(3, Sublayer.FFN): Option(40),
    }
    return [Architecture.of(one), Architecture.of({Site(0, Sublayer.FFN): Option(16)})]


def test_equals_models_that_were_cut_and_solved(
    checkpoint: Path, batches: list[Batch], products: SecondOrderStore
) -> None:
    dense = load_model(checkpoint)
    anatomy, ranking = anatomy_of(dense), random_ranking(anatomy_of(dense))
    solver = SolvedOutputs(products, torch.float32)
    evaluate = ConfigurationEvaluator(load_model(checkpoint), batches, ranking, solver=solver)
    plain = ConfigurationEvaluator(load_model(checkpoint), batches, ranking)
    for architecture in architectures():
        solved = SolvedInMemory()
        model = load_model(checkpoint)
        with loaded_layers(model) as source:
            of = (source, batches, anatomy, architecture, ranking, solved)
            reconstruct(*of, num_rows=num_rows(batches), propagates=False)
        cut_model(model, architecture, ranking, solved={i: x.tensors for i, x in solved.layers.items()})
        expected = evaluate_model(model, batches, dense)
        (found,) = evaluate([architecture])
        assert found.kl == pytest.approx(expected.kl, rel=1e-3, abs=4e-8)  # processors round otherwise
        assert found.nll == pytest.approx(expected.nll, rel=1e-4)
        assert abs(found.kl / plain([architecture])[0].kl - 1.0) > 0.01  # something was solved
    assert evaluate([Architecture.of({})])[0].kl == 0.0


def test_numbers_do_not_depend_on_what_is_kept(
    checkpoint: Path, batches: list[Batch], products: SecondOrderStore
) -> None:
    ranking = random_ranking(anatomy_of(load_model(checkpoint)))
    asked: list[tuple[int, InputRole]] = []

    class Told:
        def get(self, layer: int, role: InputRole, device: torch.device) -> InputProducts:
            asked.append((layer, role))
            return products.get(layer, role, device)

    roomy, narrow = SolvedOutputs(Told(), torch.float32), SolvedOutputs(Told(), torch.float32, max_bytes=1)
    found = []
    for solver in (roomy, narrow):
        evaluate = ConfigurationEvaluator(load_model(checkpoint), batches, ranking, solver=solver)
        asked.clear()
        found.append([evaluate([architecture])[0] for architecture in [*architectures(), *architectures()]])
        if solver is roomy:
            assert sorted(asked) == [(0, "ffn-out"), (1, "attention-out"), (3, "ffn-out")]  # each solved once
    assert found[0] == found[1]
    assert narrow.num_bytes < roomy.num_bytes


def test_weights_that_do_not_fit_the_checkpoint_are_refused(products: SecondOrderStore) -> None:
    weight = torch.randn(32, 48) * 1e5
    with pytest.raises(CheckpointError, match="ffn of layer 2 with 8 inputs is not finite in float16"):
        SolvedOutputs(products, torch.float16)(Site(2, Sublayer.FFN), weight, None, 8)
