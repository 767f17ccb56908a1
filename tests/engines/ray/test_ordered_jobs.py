"""Jobs taken in any order, results in order."""

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from engines.ray.ordered_jobs import OrderedJobs


def test_results_wait_for_those_before_them() -> None:
    jobs = OrderedJobs[str](3, window=3)
    assert [jobs.take(), jobs.take(), jobs.take(), jobs.take()] == [0, 1, 2, None]
    jobs.finish(1, "b")
    assert list(jobs.results()) == []
    jobs.finish(0, "a")
    assert list(jobs.results()) == ["a", "b"]
    assert not jobs.is_done
    jobs.finish(2, "c")
    assert list(jobs.results()) == ["c"]
    assert jobs.is_done


def test_no_job_beyond_the_window() -> None:
    jobs = OrderedJobs[int](10, window=2)
    assert (jobs.available, jobs.take(), jobs.take(), jobs.take(), jobs.available) == (2, 0, 1, None, 0)
    jobs.finish(1, 1)
    assert list(jobs.results()) == []
    assert jobs.take() is None
    jobs.finish(0, 0)
    assert list(jobs.results()) == [0, 1]
    assert (jobs.available, jobs.take(), jobs.take(), jobs.take()) == (2, 2, 3, None)


def test_what_is_put_back_comes_first() -> None:
    jobs = OrderedJobs[int](5, window=5)
    assert [jobs.take() for _ in range(3)] == [0, 1, 2]
    jobs.put_back(1)
    assert [jobs.put_back_dead(0), jobs.take(), jobs.put_back_dead(0)] == [1, 0, 2]
    assert [jobs.take() for _ in range(4)] == [0, 1, 3, 4]


@given(st.integers(0, 12), st.integers(1, 5), st.randoms(use_true_random=False))
def test_every_result_comes_out_once_and_in_order(count: int, window: int, random: Random) -> None:
    jobs = OrderedJobs[int](count, window=window)
    taken: list[int] = []
    results: list[int] = []
    while not jobs.is_done:
        while (job := jobs.take()) is not None:
            taken.append(job)
        assert 0 < len(taken) <= window
        job = taken.pop(random.randrange(len(taken)))
        match random.randrange(4):
            case 0:
                jobs.put_back(job)
            case 1:
                jobs.put_back_dead(job)
            case _:
                jobs.finish(job, job * job)
        results += jobs.results()
    assert results == [job * job for job in range(count)]
