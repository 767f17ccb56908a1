import numpy as np

from service.sensitivity_scan import ScanFinder, find_scan
from storage.contract import Repository
from storage.records import ModelRecord
from tests.service.made_up import add_calibration, sample, scan_samples

WEIGHTS = (0.1, 0.2, 0.4, 0.8)


def the_model(repository: Repository) -> ModelRecord:
    return repository.get_model("tiny")


def test_a_complete_scan_is_a_table(repository: Repository) -> None:
    model = the_model(repository)
    scan = find_scan(model.anatomy, scan_samples(model, "c", WEIGHTS))
    assert scan is not None
    assert scan.grid.widths == ((16, 32, 48, 64), (16, 32, 48, 64), (32, 64, 96, 128), (16, 32, 48, 64))
    np.testing.assert_allclose(scan.table, np.outer(WEIGHTS, (0.75, 0.5, 0.25, 0.0)))
    assert (scan.calibration_id, scan.num_samples) == ("c", 12)


def test_every_missing_sample_makes_a_scan_incomplete(repository: Repository) -> None:
    model = the_model(repository)
    samples = scan_samples(model, "c", WEIGHTS, num_levels=2)
    assert find_scan(model.anatomy, samples) is not None
    for index in range(len(samples)):
        assert find_scan(model.anatomy, samples[:index] + samples[index + 1 :]) is None
    assert find_scan(model.anatomy, []) is None


def test_scans_on_two_calibration_sets_are_not_mixed(repository: Repository) -> None:
    model = the_model(repository)
    one, two = scan_samples(model, "one", WEIGHTS), scan_samples(model, "two", WEIGHTS)
    assert find_scan(model.anatomy, one[:6] + two[6:]) is None
    later = find_scan(model.anatomy, one + two)
    assert later is not None
    assert later.calibration_id == "two"


def test_the_finer_scan_wins_and_an_unfinished_one_does_not_count(repository: Repository) -> None:
    model = the_model(repository)
    coarse, fine = scan_samples(model, "c", WEIGHTS, num_levels=4), scan_samples(model, "c", WEIGHTS, num_levels=8)
    best = find_scan(model.anatomy, fine + coarse)
    assert best is not None
    assert best.grid.num_levels == 8
    unfinished = find_scan(model.anatomy, coarse + fine[:-1])
    assert unfinished is not None
    assert unfinished.grid.num_levels == 4


def test_samples_that_change_several_layers_are_no_scan(repository: Repository) -> None:
    model = the_model(repository)
    searched = [sample(model, "c", (w, w, 2 * w, w), 0.1) for w in range(8, 64, 8)]
    assert find_scan(model.anatomy, searched) is None


def test_the_finder_sees_new_samples(repository: Repository) -> None:
    model = the_model(repository)
    calibration = add_calibration(repository)
    finder = ScanFinder(repository)
    assert finder.find(model) is None
    samples = scan_samples(model, calibration, WEIGHTS)
    # Without the middle level of the last layer, which every coarser grid has too.
    missing = samples.pop(-2)
    repository.add_samples(samples)
    assert finder.find(model) is None
    repository.add_samples([missing])
    found = finder.find(model)
    assert found is not None
    assert finder.find(model) is found
