# SPDX-License-Identifier: Apache-2.0
"""OpenAI's consistency models and their EDM teachers: their states are read as ours, and say the same of an image."""

from __future__ import annotations

import math
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from eldistill import __main__, networks
from eldistill.evaluate import features, gaussians
from eldistill.external import torchfiles
from eldistill.external.pickles import Refused
from eldistill.networks import guided
from eldistill.sampling import generators as sampling
from eldistill.sampling import teachers
from eldistill.spaces import inception
from eldistill.teacher import agree, convert
from eldistill.teacher import guided as guided_states
from tests import conftest, hostile, official
from tests.conftest import ROOT
from tests.spaces.test_inception import net, wrapped  # noqa: F401  (the fixture)
from tests.teacher import test_foreign_teachers

made, project = test_foreign_teachers.made, test_foreign_teachers.project  # the fixtures
PUBLISHED = {"img_resolution": 64, "img_channels": 3, "label_dim": 1000, "model_channels": 192, "channel_mult": [1, 2, 3, 4],
             "channel_mult_emb": 4, "num_blocks": 3, "attn_resolutions": [32, 16, 8], "num_head_channels": 64,
             "num_heads": None}  # fmt: skip
SMALL = {"img_resolution": 16, "num_head_channels": 64}  # what shapes do not say of the states below


# --- their network, written anew from what their state means --------------------------------------------


def shapes(channels: int = 3, width: int = 64, mult=(1, 2), blocks: int = 1, classes: int = 5, attend=(1,)) -> dict:
    """Names and shapes of a state in their order. attend: the levels that do."""
    found: dict[str, tuple] = {}
    wide = 4 * width

    def layer(name: str, *shape: int) -> None:
        found[f"{name}.weight"] = shape
        found[f"{name}.bias"] = shape[:1]

    def block(name: str, before: int, after: int) -> None:
        layer(f"{name}.in_layers.0", before), layer(f"{name}.in_layers.2", after, before, 3, 3)
        layer(f"{name}.emb_layers.1", 2 * after, wide)
        layer(f"{name}.out_layers.0", after), layer(f"{name}.out_layers.3", after, after, 3, 3)
        if before != after:
            layer(f"{name}.skip_connection", after, before, 1, 1)

    def attention(name: str, size: int) -> None:
        (
            layer(f"{name}.norm", size),
            layer(f"{name}.qkv", 3 * size, size, 1, 1),
            layer(f"{name}.proj_out", size, size, 1, 1),
        )

    layer("time_embed.0", wide, width), layer("time_embed.2", wide, wide)
    if classes:
        found["label_emb.weight"] = (classes, wide)
    layer("input_blocks.0.0", width, channels, 3, 3)
    current, kept, at = width, [width], 1
    for level, factor in enumerate(mult):
        for _ in range(blocks):
            block(f"input_blocks.{at}.0", current, factor * width)
            current = factor * width
            if level in attend:
                attention(f"input_blocks.{at}.1", current)
            kept.append(current)
            at += 1
        if level < len(mult) - 1:
            block(f"input_blocks.{at}.0", current, current)
            kept.append(current)
            at += 1
    (
        block("middle_block.0", current, current),
        attention("middle_block.1", current),
        block("middle_block.2", current, current),
    )
    at = 0
    for level, factor in reversed(list(enumerate(mult))):
        for index in range(blocks + 1):
            block(f"output_blocks.{at}.0", current + kept.pop(), factor * width)
            current = factor * width
            if level in attend:
                attention(f"output_blocks.{at}.1", current)
            if level and index == blocks:
                block(f"output_blocks.{at}.{2 if level in attend else 1}", current, current)
            at += 1
    layer("out.0", current), layer("out.2", channels, current, 3, 3)
    return found


def state(seed: int = 0, dtype=torch.float32, **sizes) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {
        name: (torch.randn(shape, generator=draw) / max(1, math.prod(shape[1:])) ** 0.5 + ("norm" in name)).to(dtype)
        for name, shape in shapes(**sizes).items()
    }


def forward(
    theirs: dict, x: torch.Tensor, times: torch.Tensor, classes: torch.Tensor | None, head: int = 64, heads: int = 0
) -> torch.Tensor:
    """Their F by functions of torch alone: sequences as their names number them, 32 groups in every normalisation, heads of
    `head` channels, or `heads` of them at every resolution, in the order q, k, v."""
    w = lambda name: (theirs[f"{name}.weight"].to(x), theirs[f"{name}.bias"].to(x))  # noqa: E731
    norm = lambda name, h: F.group_norm(h, 32, *w(name), eps=1e-5)  # noqa: E731
    width = theirs["input_blocks.0.0.weight"].shape[0]
    powers = torch.exp(-math.log(10000) * torch.arange(width // 2, dtype=x.dtype) / (width // 2))
    angles = times[:, None] * powers
    embedding = F.linear(torch.cat([angles.cos(), angles.sin()], 1), *w("time_embed.0"))
    embedding = F.linear(F.silu(embedding), *w("time_embed.2"))
    if classes is not None:
        embedding = embedding + theirs["label_emb.weight"].to(x)[classes]

    def block(name: str, h: torch.Tensor, change=lambda h: h) -> torch.Tensor:
        inside = F.conv2d(change(F.silu(norm(f"{name}.in_layers.0", h))), *w(f"{name}.in_layers.2"), padding=1)
        scale, shift = F.linear(F.silu(embedding), *w(f"{name}.emb_layers.1"))[:, :, None, None].chunk(2, 1)
        inside = norm(f"{name}.out_layers.0", inside) * (1 + scale) + shift
        inside = F.conv2d(F.silu(inside), *w(f"{name}.out_layers.3"), padding=1)
        h = change(h)
        if f"{name}.skip_connection.weight" in theirs:
            h = F.conv2d(h, *w(f"{name}.skip_connection"))
        return h + inside

    def attention(name: str, h: torch.Tensor) -> torch.Tensor:
        n, c, height, side = h.shape
        number = heads or c // head
        parts = F.conv2d(norm(f"{name}.norm", h), *w(f"{name}.qkv")).reshape(n, 3, number, c // number, height * side)
        q, k, v = parts.transpose(-1, -2).unbind(1)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(-1, -2).reshape(h.shape)
        return h + F.conv2d(mixed, *w(f"{name}.proj_out"))

    def sequence(name: str, h: torch.Tensor, first=lambda h: h) -> torch.Tensor:
        for index in range(3):
            part = f"{name}.{index}"
            if f"{part}.qkv.weight" in theirs:
                h = attention(part, h)
            elif f"{part}.in_layers.2.weight" in theirs:
                h = block(part, h, first if index == 0 else lambda h: F.interpolate(h, scale_factor=2, mode="nearest"))
        return h

    each = sum(name.startswith("input_blocks") and name.endswith("0.in_layers.2.weight") for name in theirs)
    levels = 1 + sum(
        name.startswith("output_blocks") and ".0." not in name and "in_layers.2.weight" in name for name in theirs
    )
    period = (each + 1) // levels
    h = F.conv2d(x, *w("input_blocks.0.0"), padding=1)
    kept = [h]
    for index in range(1, each + 1):
        h = sequence(f"input_blocks.{index}", h, (lambda h: F.avg_pool2d(h, 2)) if index % period == 0 else lambda h: h)
        kept.append(h)
    h = block("middle_block.2", attention("middle_block.1", block("middle_block.0", h)))
    for index in range(each + 1):
        h = sequence(f"output_blocks.{index}", torch.cat([h, kept.pop()], 1))
    return F.conv2d(F.silu(norm("out.0", h)), *w("out.2"), padding=1)


def inside_of(theirs: dict, x: torch.Tensor, sigma: float, classes, **heads) -> torch.Tensor:
    """Their network's part in `consistency`, the noise as 250 ln sigma: it knows no boundary."""
    times = torch.full((len(x),), 250 * math.log(sigma), dtype=x.dtype)
    return forward(theirs, x / (sigma**2 + 0.25) ** 0.5, times, classes, **heads)


def consistency(x: torch.Tensor, sigma: float, inside: torch.Tensor, boundary: float) -> torch.Tensor:
    """f(x; sigma) of Song et al. 2023, equation 5, with sigma_data 0.5."""
    both = sigma**2 + 0.25
    return 0.25 / ((sigma - boundary) ** 2 + 0.25) * x + (sigma - boundary) * 0.5 / both**0.5 * inside


def save(theirs: dict, path: Path) -> Path:
    torch.save(theirs, path)
    return path


# --- what is read ---------------------------------------------------------------------------------------

SIZES = [
    {}, {"classes": 0}, {"mult": (1, 2, 3), "blocks": 2, "attend": (1, 2)}, {"mult": (1, 1, 2), "attend": (2,), "channels": 1},
]  # fmt: skip


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_the_denoiser_is_theirs(tmp_path, sizes):
    """D of our network on their tensors equals theirs, computed independently, in float64: of a teacher, whose boundary is
    0, and of a consistency model."""
    theirs = state(dtype=torch.float64, **sizes)
    config, tensors, _ = guided_states.read_state(save(theirs, tmp_path / "net.pt"), given=SMALL)
    network = networks.build(config).double().eval()
    network.load_state_dict(tensors)
    x = torch.randn(3, config["img_channels"], *[config["img_resolution"]] * 2, dtype=torch.float64)
    classes = torch.tensor([4, 0, 2]) if config["label_dim"] else None
    labels = None if classes is None else F.one_hot(classes, 5).double()
    for sigma in (0.002, 0.5, 80.0):
        with torch.no_grad():
            inside = inside_of(theirs, x, sigma, classes)
            for network.boundary in (0.0, 0.002):
                found, wanted = network(x, sigma, labels), consistency(x, sigma, inside, network.boundary)
                assert (found - wanted).abs().max() < 1e-9 * wanted.abs().max(), (sigma, network.boundary)
                if sigma == network.boundary:
                    assert torch.allclose(found, x, rtol=0, atol=1e-12)


HEADS = [{"num_head_channels": 64}, {"num_head_channels": 32}, {"num_heads": 4}]


@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("width", [32, 64, 96, 128, 192])
def test_every_width_and_split_of_attention_is_theirs(tmp_path, width, heads):
    """F at widths where their 32 groups and EDM's min(32, channels // 4) differ (below 128) and where they do not."""
    theirs = state(width=width, dtype=torch.float64, classes=0, channels=1)
    given = {"img_resolution": 8, **heads}
    config, tensors, _ = guided_states.read_state(save(theirs, tmp_path / "net.pt"), given=given)
    network = networks.build(config).double().eval()
    network.load_state_dict(tensors)
    x = torch.randn(2, 1, 8, 8, dtype=torch.float64)
    split = {"head": heads.get("num_head_channels", 64), "heads": heads.get("num_heads", 0)}
    with torch.no_grad():
        wanted = forward(theirs, x, torch.full((2,), 250 * math.log(0.7), dtype=x.dtype), None, **split)
        found = network.model(x, torch.tensor([math.log(0.7) / 4], dtype=x.dtype), None, None)
    assert (found - wanted).abs().max() < 1e-12 * wanted.abs().max()


def test_attention_is_where_its_blocks_are_whatever_the_resolution(tmp_path):
    """The second of three levels attends: of 32 pixels that is 16, of 64 pixels 32; the state alone does not say which."""
    path = save(state(mult=(1, 2, 2), attend=(1,)), tmp_path / "net.pt")
    for side in (32, 64):
        config, tensors, _ = guided_states.read_state(path, given={"img_resolution": side, "num_head_channels": 64})
        assert (config["img_resolution"], config["attn_resolutions"]) == (side, [side // 2])
        networks.build(config).load_state_dict(tensors)
    about = guided_states.convert_state(
        path, tmp_path / "out.safetensors", given={"img_resolution": 32, "num_heads": 4}
    )
    assert about["shape"] == [3, 32, 32] and teachers.load_denoiser(tmp_path / "out.safetensors")[1] == about


@pytest.mark.parametrize(
    ("sizes", "given", "sentence"),
    [
        ({}, None, "the resolution and the attention heads of a network other"),
        ({}, {"img_resolution": 16}, "the resolution and the attention heads of a network other"),
        ({}, {"num_heads": 4}, "the resolution and the attention heads of a network other"),
        ({}, {"img_resolution": 16, "num_heads": 4, "num_head_channels": 64}, "the resolution and the attention heads of a network other"),
        ({}, {"img_resolution": 16, "num_head_channels": 48}, "128 channels cannot be split into equal heads of 48 channels"),
        ({}, {"img_resolution": 16, "num_heads": 3}, "128 channels cannot be split into equal heads in number 3"),
        ({}, {"img_resolution": 17, "num_heads": 4}, "17 cannot be halved 1 times"),
        ({"width": 48}, SMALL, "48 channels cannot be split into 32 equal groups"),
    ],
)  # fmt: skip
def test_what_shapes_do_not_say_is_asked_for(tmp_path, sizes, given, sentence):
    save(state(**sizes), tmp_path / "net.pt")
    with pytest.raises(Refused, match=sentence) as caught:
        guided_states.convert_state(tmp_path / "net.pt", tmp_path / "out.safetensors", given=given)
    assert "\n" not in str(caught.value) and not (tmp_path / "out.safetensors").exists()


def test_the_published_sizes_are_found_in_the_shapes():
    """Of ImageNet-64: those of EDM's network of it, from names and shapes alone."""
    sizes = {"width": 192, "mult": (1, 2, 3, 4), "blocks": 3, "classes": 1000, "attend": (1, 2, 3)}
    theirs = {name: torch.empty(shape, device="meta") for name, shape in shapes(**sizes).items()}
    assert (
        guided.settings(theirs) == guided.settings(theirs, {"img_resolution": 64, "num_head_channels": 64}) == PUBLISHED
    )
    outline = networks.outline({"network": "guided", **PUBLISHED})
    ours = guided.renamed(theirs, guided.Settings(**PUBLISHED))
    assert {name: each.shape for name, each in ours.items()} == {
        name: each.shape for name, each in outline.state_dict().items()
    }
    adm = networks.outline({"network": "adm", "img_resolution": 64, "img_channels": 3, "label_dim": 1000})
    assert {name: each.shape for name, each in ours.items()} == {
        name: each.shape for name, each in adm.state_dict().items()
    }
    lsun = {"width": 256, "mult": (1, 1, 2, 2, 4, 4), "blocks": 2, "classes": 0, "attend": (3, 4, 5)}
    theirs = {name: torch.empty(shape, device="meta") for name, shape in shapes(**lsun).items()}
    found = guided.settings(theirs, {"img_resolution": 256, "num_head_channels": 64})
    assert (found["img_resolution"], found["attn_resolutions"], found["channel_mult"]) == (
        256,
        [32, 16, 8],
        [1, 1, 2, 2, 4, 4],
    )


def damaged(kind: str, path: Path) -> None:
    theirs = state()
    name = "input_blocks.1.0.in_layers.2.weight"
    if kind == "compressed":
        save(theirs, path.with_suffix(".raw"))
        with zipfile.ZipFile(path.with_suffix(".raw")) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
            for each in old.infolist():
                new.writestr(each.filename, old.read(each))
        path.with_suffix(".raw").unlink()
        return
    if kind == "cut off":
        save(theirs, path)
        path.write_bytes(path.read_bytes()[:-1000])
        return
    torch.save(
        {
            "a whole module": torch.nn.Linear(2, 2),
            "a list": [1, 2],
            "a tensor": torch.ones(3),
            "numbers": theirs | {name: 1.0},
            "integers": theirs | {name: theirs[name].long()},
            "a NaN": theirs | {name: theirs[name] * math.nan},
            "one that lacks": {key: each for key, each in theirs.items() if key != name},
            "one too many": theirs | {"extra.weight": torch.ones(1)},
            "another shape": theirs | {name: theirs[name][:, :1].clone()},
            "much of little": theirs | {name: torch.ones(1).expand(10**6, 10**6)},
            "no attention": {key: each for key, each in theirs.items() if "qkv" not in key},
            "nothing": {},
        }[kind],
        path,
    )


@pytest.mark.parametrize(
    "kind",
    ["a whole module", "a list", "a tensor", "numbers", "integers", "a NaN", "one that lacks", "one too many", "another shape",
     "much of little", "no attention", "nothing", "compressed", "cut off"],
)  # fmt: skip
def test_what_is_no_state_of_theirs_is_one_sentence(tmp_path, kind):
    damaged(kind, tmp_path / "net.pt")
    with pytest.raises(Refused, match="net.pt is no network of OpenAI's consistency models") as caught:
        guided_states.convert_state(tmp_path / "net.pt", tmp_path / "out.safetensors", given=SMALL)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    assert os.listdir(tmp_path) == ["net.pt"]


def rewritten(source: Path, path: Path, change) -> Path:
    """The same zip with its records changed by `change(name, content)`, with right checksums."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as new:
        for each in old.infolist():
            new.writestr(each.filename, change(each.filename, old.read(each)))
    return path


def test_a_flipped_bit_is_refused_wherever_it_is(tmp_path):
    """In the numbers of a weight too, where torch itself sees nothing."""
    path = save(state(width=32, channels=1, classes=0, mult=(1,), attend=(0,)), tmp_path / "net.pt")
    whole, random = path.read_bytes(), np.random.default_rng(0)
    records = [
        (whole.index(bytes(each)), len(each))
        for name, each in torchfiles.read_records(path, memoryview(whole)).items()
        if "/data/" in name and len(each) > 16
    ]
    for at, size in records[:: len(records) // 20]:
        damaged = bytearray(whole)
        damaged[at + random.integers(0, size)] ^= 1 << random.integers(0, 8)
        path.write_bytes(damaged)
        with pytest.raises(Refused, match="the checksum of its part"):
            guided_states.read_state(path, given={"img_resolution": 8, "num_head_channels": 32})


@pytest.mark.parametrize("change", [-4, -64, 4, 64])
def test_a_record_of_another_length_than_its_numbers_is_refused(tmp_path, change):
    """With right checksums: torch would take the bytes of its neighbour for the rest."""
    source = save(state(width=32, channels=1, classes=0, mult=(1,), attend=(0,)), tmp_path / "net.pt")
    given = {"img_resolution": 8, "num_head_channels": 32}

    def cut(name: str, content: bytes) -> bytes:
        if not name.endswith("/data/5"):
            return content
        return content[:change] if change < 0 else content + bytes(change)

    same = rewritten(source, tmp_path / "same.pt", lambda name, content: content)
    assert all(torch.equal(a, b) for a, b in zip(guided_states.read_state(source, given=given)[1].values(),
                                                 guided_states.read_state(same, given=given)[1].values(), strict=True))  # fmt: skip
    with pytest.raises(Refused, match="one of its records has another length than its numbers"):
        guided_states.read_state(rewritten(source, tmp_path / "cut.pt", cut), given=given)


def test_a_state_executes_nothing(tmp_path, monkeypatch):
    """A pickle in the zip that calls os.system is refused, and is not called."""
    monkeypatch.chdir(tmp_path)
    torch.save({"input_blocks.0.0.weight": hostile.Call()}, "net.pt")
    with pytest.raises(Refused):
        guided_states.read_state(Path("net.pt"))
    assert not hostile.called()


def test_mutations_are_read_or_refused(tmp_path):
    whole = bytearray(
        save(state(width=32, channels=1, classes=0, mult=(1,), attend=(0,)), tmp_path / "net.pt").read_bytes()
    )
    head, random = whole.index(b"PK", 4), np.random.default_rng(0)
    for _ in range(150):
        mutated = bytearray(whole)
        for _ in range(random.integers(1, 4)):
            at = random.integers(0, head) if random.random() < 0.8 else random.integers(0, len(whole))
            mutated[at] = random.integers(0, 256)
        (tmp_path / "net.pt").write_bytes(mutated)
        try:
            guided_states.read_state(tmp_path / "net.pt", given=SMALL | {"num_head_channels": 32})
        except Refused as error:
            assert "\n" not in str(error)


# --- from end to end ------------------------------------------------------------------------------------


def test_from_their_teacher_to_a_generator(project, capsys):
    """A teacher of theirs, by `file`, distils with di/el, and is measured like any other."""
    theirs = state(channels=1, classes=0, mult=(1,), attend=(0,))
    save(theirs, Path("net.pkl"))
    assert __main__.main(["teacher", "theirs"]) == 2
    assert "set teacher.NAME.state to {img_resolution: …, num_head_channels: …}" in capsys.readouterr().err
    test_foreign_teachers.change(state={"img_resolution": 8, "num_head_channels": 64})
    assert __main__.main(["teacher", "theirs", "--processes", "4"]) == 0  # as the rule says for a job of four GPUs
    teacher, about = teachers.load_denoiser("data/teachers/theirs/teacher.safetensors")
    assert about["config"]["network"] == "guided" and about["source"]["class"] == "UNetModel"
    x = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        assert torch.allclose(
            teacher.eval()(x, 2.0), consistency(x, 2.0, inside_of(theirs, x, 2.0, None), 0.0), rtol=1e-4, atol=1e-4
        )
    for words in (["ensemble", "theirs/conv4/0"], ["distil", "theirs/di/el/0"]):
        assert __main__.main(words) == 0, capsys.readouterr().err
    generator = sampling.load_generator("data/runs/theirs/di/el/0/generator_ema.safetensors")
    assert sampling.sample(generator, 3).shape == (3, 1, 8, 8)
    values = conftest.read_yaml(Path("params.yaml").read_text(encoding="utf-8"))
    values["data"]["theirs"]["labels"] = True
    Path("params.yaml").write_text(conftest.write_yaml(values), encoding="utf-8")
    assert __main__.main(["teacher", "theirs"]) == 2
    assert "has 0 classes, but its data setting has labels: true; set labels to false" in capsys.readouterr().err


def test_the_ruler_is_laid_to_a_consistency_model(project, net, monkeypatch, capsys):  # noqa: F811
    """One step from sigma 80 with the boundary at 0.002, against ADM's reference, which the name says."""
    monkeypatch.setenv("ELDISTILL_MIRROR", "mirror"), monkeypatch.setenv("ELDISTILL_OFFLINE", "1")
    Path("mirror").mkdir()
    official.write(Path("mirror/inception-2015-12-05.pkl"), wrapped(net))
    np.savez(
        "mirror/VIRTUAL_imagenet64_labeled.npz",
        mu=np.zeros(64),
        sigma=np.eye(64),
        arr_0=np.zeros((2, 8, 8, 3), np.uint8),
    )
    whole = inception.load_space
    monkeypatch.setattr(inception, "load_space", lambda *args, **kw: lambda images: whole(*args, **kw)(images)[:, :64])
    with open(ROOT / "data/sources.csv", newline="", encoding="utf-8") as file:
        Path("data/sources.csv").write_text(file.read(), encoding="utf-8")
    theirs = state(mult=(1,), attend=(0,))
    save(theirs, Path("cd.pt"))
    # The published sizes are too large for a test: these count as published here.
    small = {"model_channels": 64, "channel_mult": [1], "num_blocks": 1, "label_dim": 5}
    monkeypatch.setattr(guided, "PUBLISHED", guided.PUBLISHED | small)
    monkeypatch.setattr(guided, "PUBLISHED_LEVELS", [0])
    monkeypatch.setattr(guided, "PUBLISHED_GIVEN", {"img_resolution": 8, "num_head_channels": 64})
    assert __main__.main(["check", "cd-imagenet64-lpips", "--file", "cd.pt", "--n", "4"]) == 0
    printed = capsys.readouterr().out
    assert "published sigma_init 80, boundary 0.002; fid 6.20, 1 call" in printed
    network, _ = convert.load_published(Path("cd.pt"))
    network.boundary = 0.002
    about = {"shape": [3, 8, 8], "label_dim": 5, "codec": agree.PIXELS, "sampler": {"steps": {"1": [80.0]}}}
    rows = features.embed(sampling.images_of(sampling.Generator(network, about), 4), inception.load_space("inception"))
    wanted = gaussians.frechet(*gaussians.moments(rows), np.zeros(64), np.eye(64))
    assert f"fd4_inception_admref {wanted:.4g} " in printed
