from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Architecture, Option, Site, Sublayer
from pruning.planning.ffn_spaces import ffn_levels, ffn_space
from pruning.planning.plan_parts import content_id
from pruning.planning.space import Decision, Options, Space
from service.sensitivity_scan import ScanFinder, find_scan
from storage.contract import Repository
from storage.records import ModelRecord
from tests.service.made_up import add_calibration, add_search, sample, scan_samples

WEIGHTS = (0.1, 0.2, 0.4, 0.8)


def the_model(repository: Repository) -> ModelRecord:
    return repository.get_model("tiny")


def test_a_complete_scan_is_a_table(repository: Repository) -> None:
    model = the_model(repository)
    scan = find_scan(model.anatomy, scan_samples(model, "c", WEIGHTS))
    assert scan is not None
    assert scan.space.document() == ffn_levels(model.anatomy, num_levels=4).document()
    assert scan.id == content_id({"calibration": "c", "widths": [row.tolist() for row in scan.space.units]})
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
    spaces = [ffn_levels(model.anatomy, num_levels=4), ffn_levels(model.anatomy, num_levels=8)]
    for searched in (spaces, spaces[::-1], spaces[:1] * 2 + spaces[1:], []):
        best = find_scan(model.anatomy, fine + coarse, searched)
        assert best is not None
        assert best.num_levels == 8
    unfinished = find_scan(model.anatomy, coarse + fine[:-1], spaces)
    assert unfinished is not None
    assert unfinished.num_levels == 4
    # Nobody says that the coarse one was one: what was measured is not the same in all layers.
    assert find_scan(model.anatomy, coarse + fine[:-1]) is None


def test_any_space_of_the_ffn_widths_of_every_layer_is_a_table(repository: Repository) -> None:
    model = the_model(repository)
    rows = [[8, 56, 64], [8, 40, 64], [96, 120, 128], [24, 32, 64]]
    dense = model.anatomy.dense_units(Sublayer.FFN)
    samples = [
        sample(model, "c", (*dense[:layer], width, *dense[layer + 1 :]), width / 1000)
        for layer, row in enumerate(rows)
        for width in row[:-1]
    ]
    assert find_scan(model.anatomy, samples) is None
    scan = find_scan(model.anatomy, samples, [ffn_space(rows)])
    assert scan is not None
    assert [row.tolist() for row in scan.space.units] == rows
    assert scan.table.tolist() == [[0.008, 0.056, 0.0], [0.008, 0.04, 0.0], [0.096, 0.12, 0.0], [0.024, 0.032, 0.0]]
    # Spaces that are no table of that kind: other counts, a narrower top, another order, other sites.
    other = [
        ffn_space([row[k:] for row, k in zip(rows, (0, 1, 0, 0), strict=True)]),
        ffn_space([row[:2] for row in rows], dense),
        ffn_space([[row[1], row[0], row[2]] for row in rows]),
        Space(scan.space.decisions[::-1], scan.space.dense),
        kv_space(model.anatomy),
    ]
    assert find_scan(model.anatomy, samples, other) is None


def kv_space(anatomy: ModelAnatomy) -> Space:
    sites = [Site(layer.index, Sublayer.ATTENTION) for layer in anatomy.layers]
    dense = {site: layer.num_kv_groups for site, layer in zip(sites, anatomy.layers, strict=True)}
    return Space(tuple(Decision((s,), (Options(np.array([0, n])),)) for s, n in dense.items()), dense)


def test_samples_of_more_than_widths_or_of_a_protocol_are_no_scan(repository: Repository) -> None:
    model, calibration = the_model(repository), add_calibration(repository)
    samples = scan_samples(model, calibration, WEIGHTS)
    groups = Architecture.of({Site(0, Sublayer.ATTENTION): Option(0)})
    mixed = [replace(s, architecture=Architecture.of([*s.architecture.items, *groups.items])) for s in samples]
    assert find_scan(model.anatomy, mixed) is None
    repository.add_samples([replace(s, protocol='[{"step":"bias"}]') for s in samples])
    assert ScanFinder(repository).find(model) is None


def test_the_finder_reads_the_space_of_finished_searches(
    repository: Repository, caplog: pytest.LogCaptureFixture
) -> None:
    model, calibration = the_model(repository), add_calibration(repository)
    coarse, fine = (scan_samples(model, calibration, WEIGHTS, num_levels=k) for k in (4, 8))
    repository.add_samples(coarse + fine[:-1])
    finder = ScanFinder(repository)
    assert finder.find(model) is None
    add_search(repository, (32, 32, 64, 32), 0.1, num_levels=4)  # of before: its settings say its levels
    found = finder.find(model)
    assert found is not None
    assert found.num_levels == 4
    repository.add_samples(fine)
    broken = add_search(repository, (32, 32, 64, 32), 0.2, space=cast("Space", Unknown()))
    add_search(repository, (32, 32, 64, 32), 0.3, num_levels=2, space=ffn_levels(model.anatomy))
    found = finder.find(model)
    assert found is not None
    assert found.num_levels == 8
    assert f"the space of search {broken.id} of model tiny is left out: a space is a list of decisions" in caplog.text


class Unknown:
    """A space as a later version may store it."""

    def document(self) -> dict[str, Any]:
        return {"graph": []}


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
