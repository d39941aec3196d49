# SPDX-License-Identifier: Apache-2.0
"""The text of `load.py` in an exported folder: images of its generator, with torch and safetensors alone."""

LOADER = '''"""Images of this generator, as a PNG or, for any other ending, as a tensor that torch.load reads:

    python load.py 16 images.png
    python load.py 16 images.pt --label 3 --steps 1 --seed 7

Needs torch and safetensors, nothing else."""
import argparse
import json
import struct
import sys
import zlib
from pathlib import Path

import torch
from safetensors.torch import load_file

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from eldistill import networks  # noqa: E402  (the folder beside this file)
from eldistill.networks import interval  # noqa: E402

about = json.loads((HERE / "config.json").read_text(encoding="utf-8"))
net = networks.build(about["config"]).eval().requires_grad_(False)
net.load_state_dict(load_file(HERE / "generator_ema.safetensors"))
net.boundary = about["sampler"].get("boundary", 0.0)
LATENTS = isinstance(about["codec"]["mean"], list)


def sample(n, seed=0, label=None, steps=1):
    """uint8 images [n, c, h, w]; of a network of latents, float latents.

    label: a class, by name or number; None draws them as often as they occur in the train images, where config.json says it.
    steps: network calls for each image, one of those in config.json. Raises ValueError for n, a label or steps that do not fit,
    and for an image that is not finite."""
    if n < 1:
        raise ValueError(f"n is {n}; expected 1 or more images")
    sigmas = levels(steps)
    random, classes = torch.Generator().manual_seed(seed), about["label_dim"]
    z = torch.randn(n, *about["shape"], generator=random)
    chosen = draw(n, random) if label is None else torch.full((n,), number(label))
    labels = torch.nn.functional.one_hot(chosen, classes).float() if classes else None
    x, still = sigmas[0] * z, about["sampler"].get("renoise") == "none"
    for step, sigma in enumerate(sigmas):
        x = again(x, sigma, random) if step and not still else x
        lower = sigmas[step + 1] if still and step + 1 < len(sigmas) else 0.0
        with interval.until(torch.tensor([lower])):
            image = net(x, torch.full((n,), sigma), labels)
        x = image + lower / sigma * (x - image)
    if not x.isfinite().all():
        raise ValueError("an image is not finite: the weights are broken")
    return x if LATENTS else decode(x)


def levels(steps):
    """The noise levels of sampling in this number of steps."""
    known = about["sampler"]["steps"]
    if str(steps) not in known:
        raise ValueError(f"steps is {steps}; expected {' or '.join(known)}")
    return known[str(steps)]


def draw(n, random):
    """n classes, each as often as in the train images; equally often if config.json does not say how often."""
    counts = about.get("class_counts") or [1] * max(about["label_dim"], 1)
    chosen = torch.randint(len(counts), (n,), generator=random)
    if len(set(counts)) > 1:
        chosen = torch.multinomial(torch.tensor(counts, dtype=torch.float64), n, replacement=True, generator=random)
    return chosen


def number(label):
    """The number of a class that is given by its name or by its number."""
    names, classes = about.get("class_names", []), about["label_dim"]
    if not classes:
        raise ValueError("this generator knows no classes; omit the label")
    found = names.index(label) if label in names else int(label) if str(label).isdecimal() else -1
    if not 0 <= found < classes:
        known = f"one of {', '.join(names[:20])}, or " if names else ""
        raise ValueError(f"label is {label!r}; expected {known}a number from 0 to {classes - 1}")
    return found


def again(x, sigma, random):
    """Noise for the next step, added to the image of the one before, which is clipped if the method says so."""
    settings, codec = about["sampler"], about["codec"]
    below = settings["boundary"] if settings.get("renoise") == "boundary" else 0.0
    if settings.get("clip") and not LATENTS:
        x = x.clamp(*((u - codec["mean"]) * 0.5 / codec["std"] for u in (0, 1)))
    return x + (sigma**2 - below**2) ** 0.5 * torch.randn(x.shape, generator=random)


def decode(x):
    """uint8 images of encoded ones."""
    codec = about["codec"]
    return ((x.double() * (codec["std"] / 0.5) + codec["mean"]) * 255 + 0.5).clamp(0, 255).to(torch.uint8)


def png(images):
    """The bytes of a PNG of uint8 images [n, c, h, w] in a square grid, grey for one channel, else RGB of the first three."""
    n, c, h, w = images.shape
    images, depth = (images[:, :3], 3) if c >= 3 else (images[:, :1], 1)
    columns = max(1, round(n**0.5))
    rows = -(-n // columns)
    board = torch.full((rows * columns, depth, h, w), 255, dtype=torch.uint8)
    board[:n] = images
    board = board.reshape(rows, columns, depth, h, w).permute(0, 3, 1, 4, 2).reshape(rows * h, columns * w * depth)
    lines = b"".join(bytes([0]) + bytes(line) for line in board.tolist())  # 0: no filter
    head = struct.pack(">IIBBBBB", columns * w, rows * h, 8, 2 if depth == 3 else 0, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(lines)), (b"IEND", b""))
    packed = (struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks)
    return bytes([137, 80, 78, 71, 13, 10, 26, 10]) + b"".join(packed)


def main():
    """Write images to a file."""
    parser = argparse.ArgumentParser(description="Images of this generator.")
    parser.add_argument("n", type=int, help="number of images")
    parser.add_argument("out", help="file to write: a PNG, or a tensor for any other ending")
    parser.add_argument("--label", help="class of all images, by name or number; drawn at random unless given")
    parser.add_argument("--steps", type=int, default=1, help=f"network calls for each image: {' or '.join(about['sampler']['steps'])}")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise")
    chosen = parser.parse_args()
    picture = chosen.out.lower().endswith(".png")
    try:
        if chosen.n > 100_000:  # they are made in memory
            raise ValueError(f"n is {chosen.n}; expected at most 100000, and more of them with another --seed")
        if picture and LATENTS:
            raise ValueError("this generator makes latents, which an autoencoder turns into images; give a file that ends in .pt")
        images = sample(chosen.n, chosen.seed, chosen.label, chosen.steps)
    except ValueError as error:
        parser.exit(2, f"load.py: {error}\\n")
    if picture:
        Path(chosen.out).write_bytes(png(images))
    else:
        torch.save(images, chosen.out)


if __name__ == "__main__":
    main()
'''
