# SPDX-License-Identifier: Apache-2.0
"""Inception of December 2015: its shape, its resize, the same features as a second construction, and its file."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from eldistill.errors import Problem
from eldistill.evaluate import features
from eldistill.external.pickles import Refused
from eldistill.spaces import inception
from tests import official

BLOCKS = {f"mixed_{i}" if i else "mixed": name for i, name in enumerate(
    ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c"))}  # fmt: skip


@pytest.fixture(scope="module")
def net():
    """The network with random numbers, scaled so that activations neither die nor explode."""
    torch.manual_seed(0)
    made = inception.Inception()
    for module in made.modules():
        if isinstance(module, inception.Conv):
            fan = module.weight[0].numel()
            nn.init.normal_(module.weight, std=(2 / fan) ** 0.5)
            nn.init.normal_(module.beta, std=0.1)
            nn.init.normal_(module.mean, std=0.1)
            nn.init.uniform_(module.var, 0.5, 1.5)
    return made.requires_grad_(False).eval()


def test_it_has_the_layers_and_the_numbers_of_the_published_one(net):
    """94 convolutions, 23,868,176 numbers: weights and three vectors for each convolution, and the classifier."""
    convs = [module for module in net.modules() if isinstance(module, inception.Conv)]
    assert len(convs) == 94
    assert sum(each.numel() for each in net.state_dict().values()) == 23_868_176
    assert net(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).shape == (2, 2048)


@pytest.mark.parametrize("size", [(8, 8), (32, 32), (64, 48), (299, 299), (512, 300)])
def test_the_resize_is_tensorflows(size):
    """Against an affine grid with its shift of half a pixel undone; a ramp stays one; at 299 nothing happens."""
    x = torch.rand(2, 3, *size, dtype=torch.float64) * 255
    height, width = size
    theta = torch.tensor([[1.0, 0, 1 / width - 1 / 299], [0, 1.0, 1 / height - 1 / 299]], dtype=torch.float64)
    grid = F.affine_grid(theta.expand(2, 2, 3), (2, 3, 299, 299), align_corners=False)
    wanted = F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)
    assert torch.allclose(inception.resize(x), wanted, atol=1e-9)
    ramp = torch.arange(float(width)).expand(1, 1, height, width)
    expected = (torch.arange(299.0) * width / 299).clamp(max=width - 1)
    assert torch.allclose(inception.resize(ramp)[0, 0, 7], expected, atol=1e-4)


def second(net):
    """The same network out of torchvision's blocks: its batch norms without a scale, pools without the padding."""
    from torchvision.models import inception as blocks

    made = blocks.inception_v3(weights=None, init_weights=False, aux_logits=False).eval()
    order = {
        "BasicConv2d": [""],
        "InceptionA": ["branch1x1", "branch5x5_1", "branch5x5_2", "branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3", "branch_pool"],
        "InceptionB": ["branch3x3", "branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"],
        "InceptionC": ["branch1x1", "branch7x7_1", "branch7x7_2", "branch7x7_3", "branch7x7dbl_1", "branch7x7dbl_2", "branch7x7dbl_3",
                       "branch7x7dbl_4", "branch7x7dbl_5", "branch_pool"],
        "InceptionD": ["branch3x3_1", "branch3x3_2", "branch7x7x3_1", "branch7x7x3_2", "branch7x7x3_3", "branch7x7x3_4"],
        "InceptionE": ["branch1x1", "branch3x3_1", "branch3x3_2a", "branch3x3_2b", "branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3a",
                       "branch3x3dbl_3b", "branch_pool"],
    }  # fmt: skip
    first = {"conv": "1a_3x3", "conv_1": "2a_3x3", "conv_2": "2b_3x3", "conv_3": "3b_1x1", "conv_4": "4a_3x3"}
    theirs = {name: getattr(made, f"Conv2d_{their}") for name, their in first.items()}
    theirs |= {name: getattr(made, f"Mixed_{their}") for name, their in BLOCKS.items()}
    for name, block in theirs.items():
        own = [module for module in getattr(net.layers, name).modules() if isinstance(module, inception.Conv)]
        for conv, part in zip(own, order[type(block).__name__], strict=True):
            there = getattr(block, part) if part else block
            there.conv.weight.data, there.bn.eps = conv.weight, 1e-3
            there.bn.weight.data.fill_(1)
            there.bn.bias.data, there.bn.running_mean, there.bn.running_var = (
                conv.beta.data,
                conv.mean.data,
                conv.var.data,
            )
    made.requires_grad_(False)
    return theirs


def test_the_features_are_those_of_a_second_construction(net, monkeypatch):
    """Block by block from torchvision's parts, whose average pools are told to leave the padding out and whose last pool
    is a maximum."""
    theirs = second(net)
    average = F.avg_pool2d
    images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    x = (inception.resize(images.float()) - 128) / 128
    for name, part in net.layers.named_children():
        ours = part(x)
        if name in theirs:
            pool = average if name != "mixed_10" else lambda y, *args, **_: F.max_pool2d(y, 3, 1, 1)
            without = {"count_include_pad": False} if name != "mixed_10" else {}
            with monkeypatch.context() as patch:
                patch.setattr(F, "avg_pool2d", lambda y, pool=pool, without=without, **kw: pool(y, **kw, **without))
                wanted = theirs[name](x)
            assert ours.shape == wanted.shape and torch.allclose(
                ours, wanted, rtol=1e-4, atol=1e-4 * float(wanted.std())
            ), name
        x = ours
    assert torch.equal(x.flatten(1), net(images)) and float(x.std()) > 0.01


def wrapped(net, **changes):
    """As NVIDIA's file has it: the network itself is the root."""
    made = official.wrapped(net, class_name="InceptionV3", _init_kwargs={})
    made.meta["state"] |= changes
    return made


def test_its_file_is_read_without_executing_it(net, tmp_path, monkeypatch):
    """Bit for bit; the feature space by name, grey images repeated; another network is refused, and a missing file."""
    path = official.write(tmp_path / "inception-2015-12-05.pkl", wrapped(net))
    again = inception.load_network(path)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in net.state_dict().items())
    monkeypatch.setattr(inception.fetching, "fetch", lambda name: {inception.DOWNLOADS[0]: path}[name])
    space = features.feature_space("inception")
    grey = torch.randint(256, (2, 1, 16, 16), dtype=torch.uint8)
    assert torch.equal(space(grey), net(grey.expand(-1, 3, -1, -1)))
    with pytest.raises(Problem, match="images of 4 channels for inception"):
        space(torch.zeros(1, 4, 8, 8, dtype=torch.uint8))
    small = nn.Module()
    small.layers = nn.Sequential(nn.Linear(2, 2))
    other = official.write(tmp_path / "other.pkl", official.wrapped(small, class_name="InceptionV3"))
    with pytest.raises(Refused, match="is not the Inception network of December 2015"):
        inception.load_network(other)
