"""What the service is asked about in `bench-service`: a model made of numbers, with what every method needs."""

import itertools

from pruning.allocators.uniform import uniform_choice
from pruning.measuring.statistics import StatisticsKind
from pruning.planning.ffn_spaces import ffn_widths
from pruning.planning.target import ffn_parameter_limits
from storage.contract import Repository
from tests.service.made_up import add_calibration, add_search, add_statistics, register_model, scan_samples

MODEL = "tiny"


def add_made_up_model(repository: Repository) -> None:
    """`MODEL`, its statistics, its one-layer scan and searches of many budgets; all but a predictor."""
    model = register_model(repository, MODEL)
    repository.add_samples(scan_samples(model, add_calibration(repository), (0.1, 0.2, 0.3, 0.4)))
    for kind in StatisticsKind:
        add_statistics(repository, model, kind)
    space = ffn_widths(model.anatomy, round_to=8)
    for method, channels in itertools.product(("mcts", "evolution", "random"), range(32, 320, 16)):
        choice = uniform_choice(ffn_parameter_limits(model.anatomy, space, channels * 48))
        add_search(repository, space.units_of(choice), 0.1, method=method, label=f"budget {channels}")
