"""Batches on the run axis: complete, of one shape, narrow enough, even, in order, none idle at the end."""

import math

from fake_jobs import FakeJob
from hypothesis import given
from hypothesis import strategies as st

from synthlm import planner


def jobs_of(groups: list[str], works: list[float] | None = None) -> list[FakeJob]:
    works = works or [1.0] * len(groups)
    return [FakeJob(name=str(i), group=g, work=w) for i, (g, w) in enumerate(zip(groups, works, strict=True))]


@given(st.lists(st.sampled_from("abc"), max_size=40), st.integers(1, 8), st.integers(1, 6))
def test_batches_hold_every_job_once_and_keep_the_rules(groups: list[str], width: int, workers: int) -> None:
    jobs = jobs_of(groups)
    made = planner.batches(jobs, lambda job: width, workers)
    names = [int(job.name) for batch in made for job in batch]
    assert sorted(names) == list(range(len(jobs)))
    for batch in made:
        assert len({job.shape for job in batch}) == 1
        assert 1 <= len(batch) <= width
        assert [int(job.name) for job in batch] == sorted(int(job.name) for job in batch)
    firsts = [int(batch[0].name) for batch in made]
    assert firsts == sorted(firsts)
    assert len(made) >= min(workers, len(jobs))
    if len(made) < len(jobs) and len(made) < planner.TAIL * workers:
        assert len(made) % workers == 0


def test_sizes_within_a_shape_are_even() -> None:
    made = planner.batches(jobs_of(["a"] * 9), lambda job: 8, 1)
    assert [len(batch) for batch in made] in ([4, 5], [5, 4])


def test_a_lone_wide_batch_is_shared_by_idle_workers() -> None:
    made = planner.batches(jobs_of(["a"] * 8), lambda job: 8, 4)
    assert [len(batch) for batch in made] == [2, 2, 2, 2]


def test_the_costliest_is_cut_first() -> None:
    jobs = jobs_of(["a", "a", "b", "b"], [1.0, 1.0, 5.0, 5.0])
    made = planner.batches(jobs, lambda job: 2, 3)
    assert [[job.group for job in batch] for batch in made] == [["a", "a"], ["b"], ["b"]]


def test_many_batches_are_left_wide() -> None:
    made = planner.batches(jobs_of(["a"] * 1001), lambda job: 8, 2)
    assert len(made) == math.ceil(1001 / 8)


def test_urgency_is_the_longest_chain_by_brute_force() -> None:
    root = FakeJob(name="root", work=1.0)
    short = FakeJob(name="short", parent=root, work=2.0)
    long = FakeJob(name="long", parent=root, work=3.0)
    end = FakeJob(name="end", parent=long, work=4.0)
    alone = FakeJob(name="alone", work=7.5)
    jobs = [alone, end, short, root, long]

    def chain(job: FakeJob) -> float:
        return job.cost + max((chain(other) for other in jobs if job.key in other.parents), default=0.0)

    found = planner.urgency(jobs)
    assert found == {job.key: chain(job) for job in jobs}
    assert found[root.key] == 8.0
    ordered = planner.most_urgent_first(jobs, found)
    assert [job.name for job in ordered] == ["root", "alone", "long", "end", "short"]


def test_order_is_kept_between_equals() -> None:
    jobs = jobs_of(["a"] * 5)
    assert planner.most_urgent_first(jobs, planner.urgency(jobs)) == jobs


def test_width_by_device_hint_and_model() -> None:
    assert planner.width(FakeJob(name="x", width_hint=5), "cpu") == 5
    assert planner.width(FakeJob(name="x", width_hint=5), "cuda") == planner.CUDA_WIDTH

    class Model:
        def __init__(self, width: int) -> None:
            self.width = width

    class Sized:
        key, parents, shape, cost = "k", (), "s", 1.0

        def __init__(self, width: int) -> None:
            self.model = Model(width)

    assert [planner.width(Sized(d), "cpu") for d in (8, 16, 32, 64, 256)] == [8, 8, 4, 2, 1]
