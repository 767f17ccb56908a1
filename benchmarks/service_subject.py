"""What the service is asked about in `bench-service`: a model made of numbers, with what every method needs."""

from storage.contract import Repository
from tests.service.made_up import add_all_but_a_predictor, register_model

MODEL = "tiny"


def add_made_up_model(repository: Repository) -> None:
    """`MODEL`, its statistics, its one-layer scan and searches of many budgets; all but a predictor."""
    add_all_but_a_predictor(repository, register_model(repository, MODEL))
