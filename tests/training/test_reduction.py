# SPDX-License-Identifier: Apache-2.0
"""Gradients are summed over processes once a step, in buckets while the last backward pass runs, as in one message after it."""

from __future__ import annotations

import dataclasses
import datetime
import multiprocessing as forking
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import distributed as collectives
from torch import multiprocessing

from eldistill.errors import Lost, NonFinite
from eldistill.training import loop, reduction
from eldistill.training import processes as distributed
from tests import test_processes
from tests.conftest import Bench

SMALL = 2000  # bytes: the networks of these tests are of several buckets
# One case for each way in which a phase ends: a critic, images that are pulled, direct terms, gradients that meet at the
# weights, a direct supplement before the images, micro-batches.
CASES = (
    "diff_instruct", "dmd2", "consistency", "el where gradients meet at the weights", "regression and el",
    "el in micro-batches", "clipped",
)  # fmt: skip
THREE = ("dmd2",)


# --- in one process: what is summed, and when ---


class Twin:
    """Two processes that compute the same: a sum is twice the value, and it is there only after it was waited for."""

    size = 2

    def __init__(self, bucket_bytes: int):
        self.bucket_bytes, self.begun = bucket_bytes, []

    def begin_sum(self, tensors: list[torch.Tensor]):
        self.begun.append([tensor.data_ptr() for tensor in tensors])
        return lambda: [tensor.mul_(2) for tensor in tensors]

    def largest(self, *values: float) -> list[float]:
        return list(values)


def parameters(*sizes: int, dtype=torch.float32) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.ones(size, dtype=dtype)) for size in sizes]


@pytest.mark.parametrize("limit", [1, 40, 100, 10**9])
def test_buckets_are_a_partition_in_the_reverse_order(limit):
    """Of the parameters with a gradient; each has one type of number, and `limit` bytes at most unless it is one alone."""
    every = [*parameters(3, 9, 30, 1, 5), *parameters(4, 4, dtype=torch.float64), *parameters(7, 2)]
    unused = {3, 6}
    for index, parameter in enumerate(every):
        parameter.grad = None if index in unused else torch.ones_like(parameter)
    summed = reduction.Reduction(Twin(limit), every, limit)
    summed.settle(float(summed.finish()))
    assert sorted(index for bucket in summed.buckets for index in bucket) == [0, 1, 2, 4, 5, 7, 8]
    for bucket in summed.buckets:
        assert bucket == sorted(bucket, reverse=True)
        assert len({every[index].dtype for index in bucket}) == 1
        assert len(bucket) == 1 or sum(every[index].nbytes for index in bucket) <= limit
    for index, parameter in enumerate(every):
        assert parameter.grad is None if index in unused else bool((parameter.grad == 2).all()), index


def test_without_a_limit_there_is_one_message_for_a_type_in_the_order_of_the_parameters():
    every = [*parameters(3, 9), *parameters(4, dtype=torch.float64), *parameters(7)]
    for parameter in every:
        parameter.grad = torch.ones_like(parameter)
    summed = reduction.Reduction(Twin(0), every, 0)
    summed.finish()
    assert summed.buckets == [[0, 1, 3], [2]]


def test_sums_begin_in_the_last_pass_alone_and_in_place():
    """Of three passes of a step the first two begin nothing; the last has begun all before `finish`, without a copy."""
    net = torch.nn.Sequential(*(torch.nn.Linear(5, 5) for _ in range(4)))
    x = torch.ones(2, 5)
    team = Twin(150)
    summed = reduction.Reduction(team, net.parameters(), 150)
    for step in range(3):
        net.zero_grad()
        team.begun.clear()
        for number in range(3):
            if number < 2:
                net(x).sum().backward()
            else:
                with summed.last_pass():
                    (net(x) + net(2 * x)).sum().backward()  # a network that is used twice has one gradient
            begun = sum(len(each) for each in team.begun)
            assert begun == (8 if number == 2 and step else 0)
        places = {parameter.grad.data_ptr() for parameter in net.parameters()}
        summed.settle(float(summed.finish()))
        assert sorted(place for each in team.begun[:-1] for place in each) == sorted(places)


def test_a_gradient_that_changes_after_its_sum_began_is_an_error():
    """Two passes that both claim to be the last would leave a sum without the second."""
    net = torch.nn.Linear(2, 2)
    summed = reduction.Reduction(Twin(1000), net.parameters(), 1000)
    net(torch.ones(1, 2)).sum().backward()
    summed.finish()
    with summed.last_pass(), pytest.raises(RuntimeError, match="got a gradient twice in one pass"):
        net(torch.ones(1, 2)).sum().backward()
        net(torch.ones(1, 2)).sum().backward()


def test_a_network_is_not_kept_by_its_hooks():
    net = torch.nn.Linear(2, 2)
    summed = reduction.Reduction(Twin(1000), net.parameters(), 1000)
    net(torch.ones(1, 2)).sum().backward()
    summed.finish()
    del summed
    net(torch.ones(1, 2)).sum().backward()  # and the hooks of a training that has ended do nothing


def test_one_process_sums_nothing(bench):
    assert loop.Loop(bench.job()).update.reductions == {}


# --- in several processes ---


class Recorded(reduction.Reduction):
    """Counts how often each parameter is summed in a step, and how many of these sums began during a backward pass."""

    # Of each step: whether each used parameter was summed exactly once; buckets; those begun in the last pass.
    steps: list[tuple[bool, int, int]] = []

    def _sum(self, bucket: list[int]) -> None:
        self.__dict__.setdefault("summed", []).extend(bucket)
        self.__dict__["early"] = self.__dict__.get("early", 0) + self.is_last_pass
        super()._sum(bucket)

    def settle(self, changed: float) -> None:
        super().settle(changed)
        used = [index for index, each in enumerate(self.parameters) if each.grad is not None]
        Recorded.steps.append((sorted(self.summed) == used, len(self.buckets), self.early))
        self.summed, self.early = [], 0


def train(bench: Bench, case: str, size: int, rank: int, limit: int) -> tuple:
    distributed.ProcessGroup.bucket_bytes = limit
    Recorded.steps = []
    folder = f"{case}-{size}-{rank}-{limit}"
    found = test_processes.outcome(test_processes.trained(bench, case, torch.float64, folder=folder))
    return *found, Recorded.steps.copy()


def sparse(rank: int, limit: int) -> list[list]:
    """Five steps of a Reduction whose parameters have gradients in some processes and steps only; what each step leaves."""
    has = [  # for each step, of each parameter: in which ranks it has a gradient; its value is rank + 1
        [(0, 1), (0,), (), (1,)],
        [(0, 1), (0,), (), (1,)],
        [(0, 1), (), (0, 1), (1,)],
        [(1,), (), (0,), (0, 1)],
        [(0, 1), (0, 1), (0, 1), (0, 1)],
    ]
    every = parameters(3, 2, 4, 2)
    summed, left = reduction.Reduction(distributed.ProcessGroup(), every, limit), []
    for step in has:
        for parameter in every:
            parameter.grad = None
        with summed.last_pass():
            mine = [p.sum() * (rank + 1) for p, ranks in zip(every, step, strict=True) if rank in ranks]
            if mine:
                sum(mine).backward()
        summed.settle(float(summed.finish()))
        found = [None if p.grad is None else p.grad.unique().tolist() for p in every]
        wanted = [[float(sum(each + 1 for each in ranks))] if ranks else None for ranks in step]
        left.append([found, wanted])
    return left


def bad(bench: Bench, rank: int, limit: int, where: str) -> str:
    """The error of a training in which the last process meets a value that is not finite, in the third step."""
    distributed.ProcessGroup.bucket_bytes = limit
    job = bench.job("diff_instruct", folder=f"bad-{where}-{limit}-{rank}", batch=4, steps=6)
    plain = job.method.critic_terms

    def terms(nets, batch, images, numbers):
        found = plain(nets, batch, images, numbers)
        if rank and batch.progress.iteration == 2:
            if where == "loss":
                return {name: value * float("nan") for name, value in found.items()}
            next(iter(found.values())).register_hook(lambda gradient: gradient * float("inf"))
        return found

    job.method = dataclasses.replace(job.method, critic_terms=terms)
    try:
        loop.Loop(job).run()
    except (NonFinite, Lost) as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def group(folder: str, name: str, rank: int, size: int) -> None:
    torch.set_num_threads(1)
    wait = datetime.timedelta(seconds=60)
    collectives.init_process_group("gloo", f"file://{folder}/{name}", wait, world_size=size, rank=rank)


def work(rank: int, folder: str) -> None:
    reduction.Reduction = Recorded
    bench = Bench(Path(folder))
    for size, cases in ((2, CASES), (3, THREE)):
        if rank < size:
            group(folder, f"store-{size}", rank, size)
            found = {(case, limit): train(bench, case, size, rank, limit) for case in cases for limit in (0, SMALL)}
            if size == 2:
                found["sparse"] = [each for limit in (0, 8, 30) for each in sparse(rank, limit)]
            torch.save(found, f"{folder}/found-{size}-{rank}.pt")
            collectives.barrier()
            collectives.destroy_process_group()
    for where in ("loss", "gradient") if rank < 2 else ():
        for limit in (0, SMALL):
            group(folder, f"store-{where}-{limit}", rank, 2)
            Path(folder, f"bad-{where}-{limit}-{rank}.txt").write_text(bad(bench, rank, limit, where), encoding="utf-8")
            collectives.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("reduction")
    bench = Bench(folder)
    for redraw in (0, 2):
        bench.manifest(redraw)
    bench.pairs()
    forking.set_forkserver_preload(["test_reduction"])
    multiprocessing.start_processes(work, (str(folder),), nprocs=3, start_method="forkserver")
    several = {size: [torch.load(folder / f"found-{size}-{rank}.pt") for rank in range(size)] for size in (2, 3)}
    return SimpleNamespace(of=several, folder=folder)


@pytest.mark.parametrize(("case", "size"), [(case, 2) for case in CASES] + [(case, 3) for case in THREE])
def test_buckets_train_as_one_message(found, case, size):
    """Networks, averages, optimisers and log: for two processes to the bit (a + b = b + a), for more up to rounding."""
    tensors, rows, _ = found.of[size][0][case, SMALL]
    wanted, wanted_rows, _ = found.of[size][0][case, 0]
    if size == 2:
        assert rows == wanted_rows and tensors.keys() == wanted.keys()
        assert all(torch.equal(each, wanted[name]) for name, each in tensors.items())
    test_processes.assert_near((tensors, rows), (wanted, wanted_rows), 1e-9)
    for other in found.of[size][1:]:
        assert all(torch.equal(other[case, SMALL][0][name], each) for name, each in tensors.items())


@pytest.mark.parametrize("case", CASES)
def test_each_gradient_is_summed_once_a_step_and_most_before_it_ends(found, case):
    for limit in (0, SMALL):
        for process in found.of[2]:
            steps = process[case, limit][2]
            assert len(steps) >= test_processes.STEPS and all(once for once, _, _ in steps)
            late = [early for _, _, early in steps if not early]
            if not limit:
                assert len(late) == len(steps)
            elif "weights" in case:  # of its backward passes none is known to be the last
                assert len(late) == len(steps)
            else:  # all but the first step of each network
                assert len(late) <= 2 and all(buckets > 2 and early == buckets for _, buckets, early in steps if early)


def test_a_parameter_without_a_gradient_in_some_processes_counts_as_zero_there(found):
    """In which processes it has one may change from step to step; one without any keeps None, as optimisers expect."""
    for process in found.of[2]:
        assert all(left == wanted for left, wanted in process["sparse"])


@pytest.mark.parametrize("limit", [0, SMALL])
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_value_that_is_not_finite_stops_all_processes(found, where, limit):
    """Nobody hangs. A process that knows which loss it was says so; otherwise all name the gradient."""
    texts = [(found.folder / f"bad-{where}-{limit}-{rank}.txt").read_text(encoding="utf-8") for rank in range(2)]
    if where == "loss":
        assert texts[1].startswith("NonFinite: step 2 (8 images): fake_score.denoising is not finite")
        assert texts[0].startswith("Lost: another process of this run has ended")
    else:
        assert texts[0] == texts[1]
        assert texts[0].startswith("NonFinite: step 2 (8 images): gradient of fake_score.")
