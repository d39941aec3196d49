# SPDX-License-Identifier: Apache-2.0
"""The arithmetic of metrics on features: by numpy on the CPU, by torch on a GPU, in float64 with the same formulas.

Covariances, eigenvalues and sums over all pairs of features with more than a thousand numbers take minutes of a CPU core. In the
context `on("cuda")` a GPU computes them. Values differ from numpy's in the last digits only: below 1e-9 relative, and below 1e-7 for
a Fréchet distance of fewer images than features, of which rounding takes half of the digits in any arithmetic. Metrics that count
images, such as precision, differ where distances are equal. Real features are
copied to the GPU once. Matrices up to SMALL stay on the CPU, where they take less time, and so does what does not fit into the memory
of the GPU. Outside of the context nothing imports torch, and the values are numpy's to the bit.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

COVERED_BY = "metrics"
FLOAT = np.float64
SMALL = 128  # largest D whose [D, D] matrices stay on the CPU

_device: str | None = None
_copies: dict[int, torch.Tensor] = {}  # of read-only arrays, by their id


@contextmanager
def on(device: str | None) -> Iterator[None]:
    """Context in which the functions of this module compute on a device of torch, such as cuda; None means by numpy."""
    global _device
    before, _device = _device, device
    try:
        yield
    finally:
        _device = before
        _copies.clear()


def copied(array: np.ndarray) -> torch.Tensor:
    """The array on the device of the context, float64. Copies of arrays that cannot change are kept as long as these, within the
    context."""
    import torch

    if array.flags.writeable:
        return torch.as_tensor(array, dtype=torch.float64, device=_device)
    if id(array) not in _copies:
        _copies[id(array)] = torch.tensor(array, dtype=torch.float64, device=_device)
        weakref.finalize(array, _copies.pop, id(array), None)
    return _copies[id(array)]


def either(there: Callable[..., Any], here: Callable[..., Any], *arguments: Any) -> Any:
    """there(*arguments) by torch on the device of the context, or here(*arguments) by numpy.

    numpy computes outside of the context, and where the device has too little memory or its decomposition does not converge."""
    if _device is None:
        return here(*arguments)
    import torch

    try:
        return there(*arguments)
    except (torch.OutOfMemoryError, torch.linalg.LinAlgError):
        _copies.clear()
        torch.cuda.empty_cache()
        return here(*arguments)


# --- moments --------------------------------------------------------------------------------------------


def mean_and_covariance(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean [D] and covariance [D, D] (divisor n - 1) in float64 of features [n, D], n at least 2."""
    if features.shape[1] <= SMALL:
        return _moments_here(features)
    found: tuple[np.ndarray, np.ndarray] = either(_moments_there, _moments_here, features)
    return found


def _moments_here(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return features.mean(0, dtype=FLOAT), np.atleast_2d(np.cov(features, rowvar=False, dtype=FLOAT))


def _moments_there(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    rows = copied(features)
    mean = rows.mean(0)
    centred = rows - mean
    return mean.cpu().numpy(), (centred.T @ centred / (len(rows) - 1)).cpu().numpy()


def symmetric_root(cov: np.ndarray) -> np.ndarray:
    """The symmetric square root [D, D] of a covariance [D, D]."""
    if len(cov) <= SMALL:
        return _root_here(cov)
    found: np.ndarray = either(_root_there, _root_here, cov)
    return found


def _root_here(cov: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(cov)
    return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T


def _root_there(cov: np.ndarray) -> np.ndarray:
    import torch

    values, vectors = torch.linalg.eigh(copied(cov))
    root: np.ndarray = ((vectors * values.clamp(min=0).sqrt()) @ vectors.T).cpu().numpy()
    return root


def trace_of_root(half: np.ndarray, cov: np.ndarray) -> float:
    """Trace of (half cov half)^1/2 for the root `half` [D, D] of one covariance and another covariance [D, D]."""
    if len(cov) <= SMALL:
        return _trace_here(half, cov)
    found: float = either(_trace_there, _trace_here, half, cov)
    return found


def _trace_here(half: np.ndarray, cov: np.ndarray) -> float:
    found: float = np.sqrt(np.clip(np.linalg.eigvalsh(half @ cov @ half), 0, None)).sum()
    return found


def _trace_there(half: np.ndarray, cov: np.ndarray) -> float:
    import torch

    root = copied(half)
    return float(torch.linalg.eigvalsh(root @ copied(cov) @ root).clamp(min=0).sqrt().sum())


# --- pairs ----------------------------------------------------------------------------------------------


def cubic_sums(a: np.ndarray, b: np.ndarray, scale: float, block: int = 1024) -> tuple[float, float]:
    """Sum and trace of ((a/scale).(b/scale)/D + 1)^3 over all pairs of rows [n, D] and [m, D]; b may be a."""
    found: tuple[float, float] = either(_cubic_there, _cubic_here, a, b, scale, block)
    return found


def _cubic_here(a: np.ndarray, b: np.ndarray, scale: float, block: int) -> tuple[float, float]:
    x = a / scale
    y = (
        x if b is a else b / scale
    )  # BLAS computes the product of an array with itself in another order than that of two
    total, trace = 0.0, 0.0
    for kernel, diagonal in _blocks(x, y, block):
        total += kernel.sum()
        trace += np.trace(kernel) if diagonal else 0.0
    return total, trace


def _cubic_there(a: np.ndarray, b: np.ndarray, scale: float, block: int) -> tuple[float, float]:
    x, y = copied(a) / scale, copied(b) / scale
    sums = [(kernel.sum(), kernel.trace() if diagonal else 0.0) for kernel, diagonal in _blocks(x, y, 4 * block)]
    return float(sum(total for total, _ in sums)), float(sum(trace for _, trace in sums))


def _blocks(x: Any, y: Any, block: int) -> Iterator[tuple[Any, bool]]:
    # Blocks of the kernel, because the matrix of 60,000 images would have 29 GB, and whether a block lies on the diagonal.
    for i in range(0, len(x), block):
        for j in range(0, len(y), block):
            base = x[i : i + block] @ y[j : j + block].T / x.shape[1] + 1
            yield base * base * base, i == j  # much faster than a power


def nearest(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Euclidean distance [n] of each row of x [n, D] to the nearest row of y [m, D]."""
    found: np.ndarray = either(
        lambda *sides: _distances_there(*sides).amin(1).cpu().numpy(),
        lambda *sides: _distances_here(*sides).min(1),
        x,
        y,
    )
    return found


def inside(points: np.ndarray, cloud: np.ndarray, k: int) -> np.ndarray:
    """bool [n, m]: whether a point, a row of [n, D], is at most as far from a point of the cloud [m, D] as that point's k-th neighbour
    in the cloud."""
    found: np.ndarray = either(_inside_there, _inside_here, points, cloud, k)
    return found


def _inside_here(points: np.ndarray, cloud: np.ndarray, k: int) -> np.ndarray:
    within = _distances_here(cloud, cloud)
    np.fill_diagonal(within, np.inf)
    radius = np.partition(within, k - 1, axis=1)[:, k - 1]
    found: np.ndarray = _distances_here(points, cloud) <= radius
    return found


def _inside_there(points: np.ndarray, cloud: np.ndarray, k: int) -> np.ndarray:
    within = _distances_there(cloud, cloud).fill_diagonal_(float("inf"))
    radius = within.kthvalue(k, dim=1).values
    found: np.ndarray = (_distances_there(points, cloud) <= radius).cpu().numpy()
    return found


def _distances_here(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.sqrt(np.clip((x**2).sum(1)[:, None] + (y**2).sum(1) - 2 * x @ y.T, 0, None))


def _distances_there(x: np.ndarray, y: np.ndarray) -> torch.Tensor:
    a, b = copied(x), copied(y)
    return ((a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T).clamp(min=0).sqrt()


# --- classifiers ----------------------------------------------------------------------------------------


def softmax(features: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """Class probabilities [n, classes] of features [n, D] by the last layer of a classifier: weight [classes, D], bias [classes]."""
    logits = features @ np.asarray(weight, FLOAT).T + (0.0 if bias is None else np.asarray(bias, FLOAT))
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)
