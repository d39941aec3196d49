# SPDX-License-Identifier: Apache-2.0
"""What makes a training faster or smaller changes no result: the same bits, or the same up to rounding where it says so."""

from __future__ import annotations

import copy
import math
import shutil

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from eldistill import contract
from eldistill.diffusion import draws, dropout
from eldistill.diffusion.draws import Draw
from eldistill.errors import NonFinite, Problem
from eldistill.losses import mmd
from eldistill.training import compute as speed
from eldistill.training import loop, optimisers, state
from eldistill.training.job import Job
from eldistill.training.monitor import Monitor

METHODS = ["diff_instruct", "dmd", "dmd2", "sid", "sida", "consistency"]


# --- optimisers ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_radam_is_torchs_to_the_bit(dtype, decay):
    """Through its first steps, which are not rectified, and beyond; a tensor without a gradient stays and ages later."""
    generator = torch.Generator().manual_seed(0)
    normal = lambda *size: torch.randn(size, generator=generator, dtype=dtype)  # noqa: E731
    start = [normal(33, 7), normal(5), normal(), normal(4, 3, 3, 3)]
    ours, theirs = ([torch.nn.Parameter(each.clone()) for each in start] for _ in range(2))
    options = {"lr": 1e-2, "betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": decay}
    pair = optimisers.RAdam(ours, **options), torch.optim.RAdam(theirs, foreach=False, **options)
    for step in range(20):
        for place, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            a.grad = None if place == 2 and step % 3 else normal(*a.shape)
            b.grad = None if a.grad is None else a.grad.clone()
        for each in pair:
            each.step()
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True)), step
        if step == 9:  # each continues from the state of the other
            states = [each.state_dict() for each in pair]
            pair[0].load_state_dict(states[1])
            pair[1].load_state_dict(states[0])
    assert not any(torch.equal(a, b) for a, b in zip(ours, start, strict=True))


# --- the state of a phase ---


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_phase_sets_its_networks_as_train_and_requires_grad_do(bench, device):
    """Whether each module trains and each parameter has a gradient; elsewhere than on a CPU by the modules' own methods."""

    class Counting(torch.nn.Module):
        calls = 0

        def train(self, mode: bool = True):
            Counting.calls += 1
            return super().train(mode)

    job = bench.job(device=device)
    job.nets["generator"].extra = Counting()
    work = loop.Loop(job)
    net, Counting.calls = job.nets["generator"], 0
    for training, gradient in ((True, False), (False, True), (True, True), (False, False)):
        work.update._set("generator", training, gradient)
        assert {module.training for module in net.modules()} == {training}
        assert {parameter.requires_grad for parameter in net.parameters()} == {gradient}
    assert Counting.calls == (0 if device == "cpu" else 4)


# --- waiting for the device ---


class Reads(TorchDispatchMode):
    """Counts the numbers that are read of tensors while it is on: on a GPU each would wait for all its work."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return function(*args, **(kwargs or {}))


ALONE, EL = {}, {"embedding": {"diagnose": 1}}


@pytest.mark.parametrize("supplements", [ALONE, EL], ids=["alone", "el"])
@pytest.mark.parametrize("method", METHODS)
def test_an_iteration_reads_its_numbers_together(bench, method, supplements):
    """Nothing is asked of the device one by one: `look` reads everything at once (`tolist`), once an iteration."""
    work, looks = loop.Loop(bench.job(method, supplements, batch=4)), []
    for optimiser in work.optimisers.values():
        optimiser.step = lambda: None  # its age lies on the CPU
    look = work.monitor.flush
    work.monitor.flush = lambda progress: (looks.append(progress), look(progress))[1]
    with Reads() as reads:
        work.iterate()
    assert (reads.count, len(looks)) == (0, 1)


BESIDE = {
    "alone": ALONE, "gan": {"gan": {}}, "el, gan": EL | {"gan": {}}, "regression": {"regression": {}},
    **{f"el, {kernel}": {"embedding": {"diagnose": 1, "kernel": kernel}} for kernel in mmd.KERNELS},
    "el, adaptive": {"embedding": {"diagnose": 1, "weighting": "adaptive", "start_images": 64}},
    "el, augmented": {"embedding": {"augmentation": ("color", "crop", "flip")}}, "el, stacked": {"embedding": {"stack": "stacked"}},
}  # fmt: skip
LEVELS = ("fixed", "growing", "doubling", "continuous")


def unreadable(bench, method: str, supplements: dict, **others) -> tuple[loop.Loop, list]:
    """A training on torch's `meta` device, whose numbers nobody can read; and a list of its looks, one for each."""
    work, looks = loop.Loop(bench.job(method, supplements, device="meta", **others)), []

    def look(progress) -> None:
        looks.append(progress)
        for scalars, take in work.monitor._asked:
            take(*(1.0 for _ in scalars))
        work.monitor._asked, work.monitor._watched = [], []

    work.monitor.flush = look
    for optimiser in work.optimisers.values():
        optimiser.step = lambda: None  # torch has no fused one there
    return work, looks


@pytest.mark.parametrize(
    "method, supplements",
    [
        *((each, "alone") for each in METHODS),
        *((each, "el, rbf") for each in METHODS[1:]),
        *(("diff_instruct", each) for each in BESIDE),
    ],
)
def test_a_device_is_waited_for_once_an_iteration(bench, method, supplements):
    """Everything else goes on without knowing one number: on a device that has none to give, nothing fails."""
    work, looks = unreadable(bench, method, BESIDE[supplements], labels=3, dropout=0.1)
    for _ in range(2):
        work.iterate()
    assert len(looks) == 2 and work.n_images == 8


@pytest.mark.parametrize("levels", LEVELS)
def test_no_schedule_of_levels_asks_the_device(bench, levels):
    """Grids of CD, CT, iCT and ECT: which images need a target is not known outside the device either."""
    numbers = contract.load_module("methods", "consistency").Numbers(levels=levels, choice="lognormal", flip=True)
    work, looks = unreadable(bench, "consistency", EL, numbers=numbers)
    work.iterate()
    assert len(looks) == 1


def test_a_device_computes_all_targets(bench, monkeypatch):
    """Where it is not asked which are needed the loss is the same up to rounding."""
    numbers = contract.load_module("methods", "consistency").Numbers(levels="continuous", k=0.0, q=2.0, P_mean=-4.0)
    found = []
    for there in (False, True):
        monkeypatch.setattr(draws, "computed_on", lambda device, there=there: there)
        work = loop.Loop(bench.job("consistency", numbers=numbers, batch=16, dropout=0.2, dtype=torch.float64))
        work.iterate()
        found.append(work.monitor.sums["generator.consistency"][0])
    assert found[0] == pytest.approx(found[1], rel=1e-6)


def test_numbers_wait_for_a_look():
    """Sums, in the order of counting, of numbers that are known and of those that a device knows."""
    monitor, progress = Monitor(2), contract.Progress(0, 0, 1)
    monitor.count("a", torch.tensor(3.0), 0.5)
    monitor.count("b", 7.0)
    monitor.count("a", torch.tensor(5.0, dtype=torch.float64), 0.5)
    monitor.count("c", torch.tensor(0.0) / 0, known=torch.tensor(False))  # there is none
    monitor.count("d", torch.tensor(2.0), known=torch.tensor(True))
    monitor.later(contract.Later([torch.tensor(2.0), torch.tensor(5.0)], lambda a, b: {"product": a * b}), "el.")
    assert monitor.sums == {}
    monitor.flush(progress)
    expected = {"a": [4.0, 1.0], "b": [3.5, 0.5], "d": [1.0, 0.5], "el.product": [5.0, 0.5]}
    assert monitor.sums == expected and list(monitor.sums) == list(expected)
    monitor.flush(progress)
    assert monitor.sums == expected


@pytest.mark.parametrize("method", ["diff_instruct", "consistency"])
def test_nothing_bad_is_saved(bench, method):
    """A gradient that is not finite has moved weights before it is found: the run ends there, with the state before it."""
    work = loop.Loop(bench.job(method, steps=6, save_seconds=0))
    iterate, parameter = work.iterate, next(p for p in work.job.nets["generator"].parameters() if p.ndim > 1)

    def poisoned() -> None:
        if work.iteration == 3:
            parameter.register_hook(lambda gradient: gradient * math.nan)
        iterate()

    work.iterate = poisoned
    with pytest.raises(NonFinite, match=r"step 3 \(12 images\): gradient of generator\."):
        work.run()
    tensors, numbers = state.load_state(work.job.folder)
    assert numbers["n_images"] == 12 and all(bool(each.isfinite().all()) for each in tensors.values())


def test_the_first_bad_tensor_is_named():
    """Of several the first; in place of a norm the part that spoilt it; after the flush it is forgotten."""
    monitor, progress = Monitor(1), contract.Progress(12, 3, 100)
    bad = torch.tensor([1.0, math.inf, math.nan])
    monitor.finite("good", torch.ones(2))
    monitor.finite("norm", bad.norm(), [("weight", torch.ones(3)), ("bias", bad)])
    monitor.finite("later", bad)
    sentence = r"step 3 \(12 images\): bias is not finite \(2 of 3 values, shape \(3,\)\); the last good state is kept"
    with pytest.raises(NonFinite, match=sentence):
        monitor.flush(progress)
    monitor.flush(progress)


def test_indices_lie_where_they_are_used():
    """`on` moves the numbers, and changes none."""
    draw = Draw(3, "x", 5, 4, "meta")
    assert draw.on("cpu").device == "cpu" and draw.integers("label", 10).device.type == "meta"
    assert torch.equal(draw.on("cpu").integers("label", 10), Draw(3, "x", 5, 4).integers("label", 10))


# --- blocks computed again ---


def trained(job: Job, change) -> dict[str, torch.Tensor]:
    """All tensors after the run of a job whose networks were changed."""
    change([*job.fixed.values(), *job.nets.values()])
    work = loop.Loop(job)
    work.run()
    return state.pack_tensors({**job.nets, "average": work.average}, work.optimisers)


@pytest.mark.parametrize("supplements", [None, {"embedding": {}}], ids=["alone", "el"])
@pytest.mark.parametrize("method", METHODS)
def test_blocks_computed_again_change_no_bit(bench, method, supplements):
    """With dropout, in every method; a supplement of a base loss without images goes back twice through one graph."""
    runs = [
        trained(bench.job(method, supplements, dropout=0.3, folder=name, steps=2), change)
        for name, change in (("kept", lambda nets: None), ("again", speed.recompute_blocks))
    ]
    assert runs[0].keys() == runs[1].keys()
    assert all(torch.equal(runs[0][key], runs[1][key]) for key in runs[0])


@pytest.mark.parametrize("network", ["song", "adm", "edm2"])
def test_blocks_are_computed_twice_and_only_for_a_gradient(bench, network):
    """Every block once on the way there, once on the way back; without a gradient once in all."""
    net, calls = bench.teacher(dropout=0.2, network=network).train(), []
    speed.recompute_blocks([net])
    blocks = [each for each in net.modules() if hasattr(each, "recompute")]
    for block in blocks:
        block.register_forward_pre_hook(lambda *_: calls.append(1))
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    with dropout.masks(Draw(0, "x", 0, 3), "images"):
        image = net(x, torch.full((3,), 0.7))
        assert len(blocks) > 2 and len(calls) == len(blocks)
        with torch.no_grad():
            net(x, torch.full((3,), 0.7))
        assert len(calls) == 2 * len(blocks)
    image.sum().backward()
    assert len(calls) == 3 * len(blocks)


@pytest.mark.parametrize(("method", "kind"), [("diff_instruct", "adam"), ("sid", "adamw"), ("consistency", "radam")])
def test_channels_beside_each_other_agree(bench, method, kind):
    """With every optimiser, EL beside them: up to rounding; a run that was stopped continues to the bit in that layout."""

    def run(folder, change, stop=0):
        job = bench.job(
            method, {"embedding": {}}, dtype=torch.float64, folder=folder, steps=4, optimiser={"kind": kind}
        )
        change(job.nets.values())
        work = loop.Loop(job)
        if stop:
            for _ in range(stop):
                work.iterate()
            work.save()
        else:
            work.run()
        weight = job.nets["generator"].get_parameter("model.dec.8x8_block0.conv0.weight")
        assert weight.is_contiguous() == (folder == "plain")
        return state.pack_tensors({**job.nets, "average": work.average}, work.optimisers)

    wanted, found = run("plain", lambda nets: None), run("last", speed.set_channels_last)
    for key, value in wanted.items():
        torch.testing.assert_close(found[key], value, rtol=1e-7, atol=1e-9)
    run("stopped", speed.set_channels_last, stop=2)
    again = run("stopped", speed.set_channels_last)
    assert all(torch.equal(again[key], found[key]) for key in found)


# --- compiled networks ---


@pytest.fixture
def tracing(monkeypatch):
    """Networks are traced as for a compiler, whether this machine has one or not; its machine code would take minutes."""
    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda each, **options: compile(each, backend="aot_eager", **options))
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    torch._dynamo.reset()


def test_without_a_compiler_there_is_one_sentence(bench, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(Problem, match="distil.compile is true, but there is no C\\+\\+ compiler no-such-compiler"):
        speed.compile_networks([bench.teacher()])


TRACING = "ignore:The .grad attribute of a Tensor that is not a leaf"  # torch's compiler asks for it


@pytest.mark.filterwarnings(TRACING)
@pytest.mark.parametrize(
    ("method", "dropout"), [("diff_instruct", 0.3), ("dmd2", 0.3), ("sid", 0.3), ("sida", 0.3), ("consistency", 0.3)]
)
def test_compiled_networks_agree(bench, method, dropout, tracing):
    """Traced as a compiler would (without making machine code, which takes minutes): the run up to rounding, dropout masks
    included."""
    make = lambda folder: bench.job(method, dtype=torch.float64, dropout=dropout, folder=folder, steps=6)  # noqa: E731
    backend = torch._dynamo.utils.counters
    backend.clear()
    wanted = trained(make("eager"), lambda nets: None)
    assert not backend["stats"]
    found = trained(make("compiled"), speed.compile_networks)
    assert 2 <= backend["stats"]["unique_graphs"] <= 8 and not backend["graph_break"]
    assert wanted.keys() == found.keys()
    for key, value in wanted.items():
        torch.testing.assert_close(found[key], value, rtol=1e-7, atol=1e-9, msg=lambda text, key=key: f"{key}: {text}")


def arguments(labels: int) -> tuple:
    normal = torch.Generator().manual_seed(0)
    x, sigma = torch.randn(3, 1, 8, 8, generator=normal, dtype=torch.float64), torch.tensor([0.1, 1.0, 5.0])
    return x, sigma, torch.eye(labels, dtype=torch.float64)[:3] if labels else None


def three_passes(net: torch.nn.Module, labels: int = 0) -> list[torch.Tensor]:
    """What `forward`, `encode` and `both` give, and the gradients of it at the weights and the images."""
    x, sigma, classes = arguments(labels)
    x.requires_grad_()
    outputs = [net(x, sigma, classes), net.encode(x, sigma, classes), *net.both(x, sigma, classes)]
    wanted = [p for p in net.parameters() if p.requires_grad]
    loss = sum((each * (index + 1)).square().sum() for index, each in enumerate(outputs))
    return [*outputs, *torch.autograd.grad(loss, [x, *wanted], allow_unused=True)]


@pytest.mark.filterwarnings(TRACING)
@pytest.mark.parametrize(("network", "labels"), [("song", 3), ("adm", 0), ("edm2", 0), ("ddpm", 0), ("guided", 0)])
def test_every_pass_of_a_denoiser_is_compiled(bench, network, labels, tracing):
    """One graph each for the image, the features and both; none is made again for another call or a network like it."""
    nets = [bench.teacher(labels, torch.float64, network=network, seed=seed).requires_grad_() for seed in (0, 1)]
    wanted = [three_passes(net, labels) for net in nets]
    stats = torch._dynamo.utils.counters
    stats.clear()
    speed.compile_networks(nets)
    for net, plain in zip(nets, wanted, strict=True):
        for _ in range(2):
            for found, each in zip(three_passes(net, labels), plain, strict=True):
                assert (found is None) == (each is None)
                if each is not None:
                    torch.testing.assert_close(found, each, rtol=1e-9, atol=1e-12)
    assert stats["stats"]["unique_graphs"] == 3 and not stats["graph_break"]
    stats.clear()
    with speed.without_compiled_code(True):
        three_passes(nets[0], labels)
    assert not stats["stats"]


@pytest.mark.filterwarnings(TRACING)
def test_a_copy_is_not_compiled(bench, tracing):
    """Whatever a training copies of its networks is evaluated as it is written, and the original stays compiled."""
    net = bench.teacher().requires_grad_()
    speed.compile_networks([net])
    copied, stats = copy.deepcopy(net), torch._dynamo.utils.counters
    stats.clear()
    three_passes(copied)
    assert not stats["stats"]
    three_passes(net)
    assert stats["stats"]["unique_graphs"] == 3


@pytest.mark.slow
@pytest.mark.filterwarnings(TRACING)
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler to compile with")
def test_compiled_to_machine_code(bench):
    """The same with code for this machine."""
    torch._dynamo.reset()
    make = lambda folder: bench.job("sid", dtype=torch.float64, dropout=0.3, folder=folder, steps=6)  # noqa: E731
    wanted, found = trained(make("eager"), lambda nets: None), trained(make("compiled"), speed.compile_networks)
    for key, value in wanted.items():
        torch.testing.assert_close(found[key], value, rtol=1e-7, atol=1e-9)


def test_operations_are_counted_uncompiled(bench, tracing):
    """The count of a compiled training is that of one that is not."""
    counts = []
    for compile in (False, True):
        job = bench.job("diff_instruct", folder=f"compiled-{compile}", steps=2)
        if compile:
            speed.compile_networks([*job.fixed.values(), *job.nets.values()])
        work = loop.Loop(job)
        work.run()
        with speed.without_compiled_code(compile):
            counts.append(work.count_flop())
    assert counts[0] == counts[1] > 1e5


# --- images of the generator's step, used again ---


@pytest.mark.parametrize("labels", [0, 3])
@pytest.mark.parametrize("method", ["diff_instruct", "dmd", "dmd2", "f_divergence", "sid", "sida", "sim"])
def test_images_used_again_leave_the_expected_gradient(bench, method, labels, monkeypatch):
    """Networks held fixed, fake_score's gradient is the same function of noise, label, sigma and epsilon, to rounding:
    with the numbers of both phases made one, images of its own and those of the generator's step give the same."""
    plain = {kind: getattr(Draw, kind) for kind in ("normal", "integers")}

    def shared(kind: str, purpose_of_images: str):
        def draw(self, purpose, *rest):
            if purpose != purpose_of_images:
                return plain[kind](self, purpose, *rest)
            return plain[kind](Draw(self.seed, "both", self.first, self.size, self.device, self.dtype), purpose, *rest)

        return draw

    monkeypatch.setattr(Draw, "normal", shared("normal", "z"))
    monkeypatch.setattr(Draw, "integers", shared("integers", "label"))
    found = {}
    for images in ("fresh", "reuse"):
        numbers = contract.load_module("methods", method).Numbers(
            images=images, **({"group": 2} if method in ("sida", "f_divergence") else {})
        )
        work = loop.Loop(bench.job(method, numbers=numbers, labels=labels, dtype=torch.float64, steps=9, folder=images))
        for optimiser in work.optimisers.values():
            optimiser.step = lambda: None
        work.iterate()  # the first: later ones of dmd2 have no step of the generator
        found[images] = [p.grad.clone() for p in work.nets["fake_score"].parameters() if p.grad is not None]
    assert len(found["fresh"]) == len(found["reuse"]) > 10 and max(each.abs().max() for each in found["fresh"]) > 0
    for a, b in zip(found["fresh"], found["reuse"], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_noise_of_the_images_is_independent_of_what_is_added_to_them():
    """With `reuse` z is of one phase, epsilon and sigma of another: standard normals without correlation, as within a phase."""
    n, c = 40_000, 4
    z = Draw(0, "generator", 0, n, dtype=torch.float64).normal("z", c)
    for scope in ("generator", "fake_score"):
        draw = Draw(0, scope, 0, n, dtype=torch.float64)
        other = torch.cat([draw.normal("epsilon", c), draw.normal("sigma")[:, None]], dim=1)
        both = torch.cat([z, other], dim=1)
        assert (both.mean(0).abs() < 5 / n**0.5).all()
        assert (both.T @ both / n - torch.eye(2 * c + 1)).abs().max() < 5 * (2 / n) ** 0.5


# --- what a GPU says when something is missing ---


@pytest.mark.parametrize(
    "error, memory, repeatable",
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True, True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True, True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True, True),
        (RuntimeError("CUDA error: out of memory"), True, True),
        (RuntimeError("cumsum_cuda_kernel does not have a deterministic implementation, but you set …"), False, False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False, True),
        (ValueError("out of memory"), False, True),
    ],
)
def test_errors_of_a_device_are_told_apart(error, memory, repeatable):
    assert speed.out_of_memory(error) is memory
    assert (speed.not_repeatable(error) is None) is repeatable


def test_a_clipped_step_names_the_parameter_that_is_bad(bench):
    """One gradient is not finite: the others are not spoilt by its norm before it is found."""
    job = bench.job("diff_instruct", optimiser={"clip": 1.0}, steps=2)
    name, parameter = [pair for pair in job.nets["generator"].named_parameters() if pair[1].ndim > 1][-1]
    parameter.requires_grad_().register_hook(lambda gradient: gradient * math.nan)
    with pytest.raises(NonFinite, match=rf"gradient of generator\.{name} is not finite"):
        loop.Loop(job).run()
