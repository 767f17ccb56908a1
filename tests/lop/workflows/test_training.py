"""Which samples a predictor is trained on."""

from dataclasses import replace
from pathlib import Path

import pytest

from lop.workflows.training import training_samples
from pruning.errors import InputError
from storage.sql_repository import open_repository
from tests.storage.examples import ANATOMY, calibration, sample, store_basics


def test_the_calibration_set_with_most_samples_of_ffn_widths_is_learnt_from(tmp_path: Path) -> None:
    grouped = [
        replace(sample(n, calibration_id="d"), architecture=ANATOMY.architecture((8 * n, 64), (1, 2))) for n in (1, 2)
    ]
    with open_repository(f"sqlite:///{tmp_path / 'lop.db'}", create=True) as repository:
        store_basics(repository)
        repository.add_calibration(replace(calibration("d"), name="other"))
        with pytest.raises(InputError, match="trained on the samples of a search"):
            training_samples(repository, "m")
        repository.add_samples([*grouped, sample(1)])
        assert training_samples(repository, "m") == [sample(1)]
        assert training_samples(repository, "m", "d") == grouped
        repository.add_samples([sample(n, calibration_id="d") for n in (3, 4)])
        assert len(training_samples(repository, "m")) == 4
