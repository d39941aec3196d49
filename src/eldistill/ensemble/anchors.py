# SPDX-License-Identifier: Apache-2.0
"""Anchors: summaries of all real features, so that EL compares a batch with the data set and needs no real images in a step.

    MMD^2 = sum_{i != j} k(x_i, x_j) / (m (m - 1)) - 2/m sum_i mu(x_i) + c,     mu(x) = sum_j a_j k(x, z_j)

The term within the batch and c = sum_{a != b} k(y_a, y_b) / (n (n - 1)) are exact. mu, the mean of k(x, y) over the n
real images, is approximated by weights a of M landmarks z, which are real images drawn from the ensemble's seed
(Nyström; Rudi et al. 2015). With M = n it is exact: a = 1/n. The biased form is the V-statistic of both terms. With
M < n, c is shifted by twice the error that mu has on average over real images, so that new real images have the
unbiased value 0 on average.

The weights solve (K + e I) a + l 1 = mean_n k(z, y_n), sum a = 1, in float64, with K = k(z, z) and
e = RIDGE (mean of the diagonal of K - mean of K). The constraint makes the solution independent of a constant added to k,
which MMD does not see either; `energy`, which is positive definite only for weights that sum to zero, needs it. The
ridge is needed where K is singular: for images that occur twice, and for `cubic` with more landmarks than monomials of
the features. On the digits every ridge from 1e-10 to 1e-3 gives the same errors and weights with sum |a| < 1.6.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from eldistill.diffusion.draws import Draw
from eldistill.ensemble.members import Member
from eldistill.ensemble.reading import feature_blocks
from eldistill.errors import Problem
from eldistill.losses import mmd
from eldistill.losses.kernel_sums import kernel_sums, sum_of_diagonal

RECIPE = ("ensemble/anchors", 1)
# Default. On the digits the gradient of mu then has an error of 1 % (rbf, energy, cubic) to 5 % (laplace), and EL takes four
# fifths of its time with 1,024.
LANDMARKS = 256
RIDGE = 1e-5  # relative to the spread of the kernel's own features over the landmarks
BLOCK = 1000  # images whose features are computed at once
WITHIN = (
    50_000  # images over whose pairs c is summed, at most: of a larger set a random part, which changes no gradient
)
SOLVED = 10_000  # landmarks, at most, if there are more images: the weights need 8 M^2 bytes for each of six matrices
KERNELS = tuple(kernel for kernel in mmd.KERNELS if kernel != "linear")  # linear has the mean features instead


# --- recording -------------------------------------------------------------------------------------------


def record_anchors(members: list[Member], reals, seed: int, landmarks: int) -> dict[str, np.ndarray]:
    """Arrays of the anchors of all kernels, by name, for the .npz file of an ensemble.

    reals: all n encoded training images. landmarks: M; with M >= n every image is one.

    landmarks: int64 [min(M, n)], rows of reals. For member k: anchor_k [D], the mean features; trace_k, the trace of their
    covariance; within_KERNEL_k [2], the constant c of the unbiased and of the biased form; weights_KERNEL_k [M] unless
    M >= n. The file grows by 8 (M + K (D + 1) + 4 K (M + 2)) bytes for K members. While it is made, 4 D min(n, 50,000) bytes
    hold the features of a member, and 48 M^2 bytes the matrices of its landmarks. The constants take n^2 D / 2 products.
    Raises Problem for more landmarks than can be solved for.
    """
    if SOLVED < landmarks < len(reals):
        raise Problem(
            f"params.yaml: an ensemble has anchor: true and landmarks: {landmarks} of {len(reals)} train images; expected at most "
            f"{SOLVED}, or at least {len(reals)}, which needs no weights"
        )
    order = landmark_order(seed, len(reals))
    arrays: dict[str, Any] = {"landmarks": order[:landmarks].numpy()}
    for k, member in enumerate(members):
        for name, each in _of_member(member, reals, order, landmarks).items():
            arrays[f"{name}_{k}"] = each.numpy()
    return arrays


def landmark_order(seed: int, n: int) -> torch.Tensor:
    """A permutation of the n real images from the ensemble's seed, int64 [n]; its first M are the landmarks."""
    return Draw(seed, "el/landmarks", 0, n, dtype=torch.float64).uniform("image").argsort()


def _of_member(member: Member, reals, order: torch.Tensor, landmarks: int) -> dict[str, torch.Tensor]:
    n, kept, held = len(order), list[torch.Tensor](), 0
    z = torch.cat(list(feature_blocks(member, reals, order[:landmarks], BLOCK))).double() if landmarks < n else None
    total: Any = 0
    square: Any = 0
    means: dict[str, Any] = dict.fromkeys(KERNELS, 0)
    for block in feature_blocks(member, reals, order, BLOCK):
        rows = block.double()
        total, square = total + rows.sum(0), square + rows.square().sum()
        if held < WITHIN:
            kept.append(block[: WITHIN - held])
            held += len(kept[-1])
        if z is not None:
            for kernel, gram in grams(z, rows, member.bandwidth).items():
                means[kernel] = means[kernel] + gram.sum(1) / n
    found = {"anchor": total / n, "trace": (square - total.square().sum() / n) / (n - 1)}
    found |= {f"within_{kernel}": each for kernel, each in within(torch.cat(kept), member.bandwidth).items()}
    if z is not None:
        for kernel, gram in grams(z, z, member.bandwidth).items():
            gram = mmd.exact_diagonal(gram, kernel)
            weights = found[f"weights_{kernel}"] = solve(gram, means[kernel])
            others = (n * means[kernel] - gram.diagonal()) / (n - 1)  # mean of k(z_j, y) over all images but z_j itself
            constants = found[f"within_{kernel}"]
            found[f"within_{kernel}"] = constants + 2 * (weights @ others - constants[0])
    return found


def grams(x: torch.Tensor, y: torch.Tensor, bandwidth: float) -> dict[str, torch.Tensor]:
    """k(x, y) [m, n] of every kernel of KERNELS; the squared distances are computed once."""
    squares = mmd.squared_distances(x, y)
    return {kernel: mmd.RADIAL[kernel](squares, bandwidth) if kernel in mmd.RADIAL else mmd.KERNELS[kernel](x, y, bandwidth)
            for kernel in KERNELS}  # fmt: skip


def within(y: torch.Tensor, bandwidth: float) -> dict[str, torch.Tensor]:
    """The mean of k(y_a, y_b) over a != b and over all pairs, float64 [2], for every kernel. y: [n, D], n >= 2.

    Sums are taken in float64 over blocks, so no matrix larger than BLOCK x BLOCK exists.
    """
    n, parts = len(y), [part.double() for part in y.split(BLOCK)]
    off: dict[str, Any] = dict.fromkeys(KERNELS, 0)
    diagonal: dict[str, Any] = dict.fromkeys(KERNELS, 0)
    for i, left in enumerate(parts):
        for right in parts[i:]:
            for kernel, gram in grams(left, right, bandwidth).items():
                if right is not left:
                    off[kernel] = off[kernel] + 2 * gram.sum()
                    continue
                gram = mmd.exact_diagonal(gram, kernel)
                off[kernel] = off[kernel] + gram.sum() - gram.trace()
                diagonal[kernel] = diagonal[kernel] + gram.trace()
    return {
        kernel: torch.stack([off[kernel] / (n * (n - 1)), (off[kernel] + diagonal[kernel]) / n**2])
        for kernel in KERNELS
    }


def solve(gram: torch.Tensor, mean: torch.Tensor, ridge: float = RIDGE) -> torch.Tensor:
    """Weights [M], float64, whose combination of the landmarks' kernels is nearest to the mean; they sum to 1.

    gram: k(z, z) [M, M]. mean: of k(z, y) over the real images y, [M]. Raises Problem if they are not finite.
    """
    count = len(gram)
    spread = gram.diagonal().mean() - gram.mean()
    system = torch.ones(count + 1, count + 1, dtype=torch.float64)
    system[:count, :count] = gram + ridge * spread * torch.eye(count, dtype=torch.float64)
    system[count, count] = 0
    weights = torch.linalg.solve(system, torch.cat([mean, mean.new_ones(1)]))[:count]
    if not bool(weights.isfinite().all()):
        raise Problem(
            f"the weights of {count} landmarks are not finite; choose another number of landmarks for the ensemble"
        )
    return weights


# --- use -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Anchor:
    """All that anchored EL knows of the real images, for one member and one kernel other than linear.

    points: features of the landmarks [M, D]. weights: [M]. within: the constant c of the unbiased and of the biased form.
    """

    points: torch.Tensor
    weights: torch.Tensor
    within: tuple[float, float]

    def mmd2(
        self, x: torch.Tensor, kernel: str, bandwidth: float, estimator: str = "unbiased",
        across: mmd.Rows | None = None, gaps: list[torch.Tensor] | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """MMD^2 between the rows of x [m, D] and all real images; scalar, differentiable in x.

        estimator: unbiased, which needs m >= 2, or biased, as in eldistill.losses.mmd. across: processes with the rest of the
        rows: the kernel within the batch is that of all rows, mu is summed over the own ones. gaps: a list that receives the
        biased minus the unbiased value, without a gradient; it needs m >= 2. Raises Problem for one row.
        """
        x = x if x.dtype == torch.float64 else x.float()
        rows = x if across is None else across.gather(x)
        m, constant = len(rows), self.within[estimator == "biased"]
        if m < 2 and (estimator == "unbiased" or gaps is not None):
            raise Problem("the unbiased MMD of 1 generated image; expected at least 2: raise the batch")
        scale, weights = 1 / (m * m if estimator == "biased" else m * (m - 1)), self.weights * (-2 / m)
        if across is None:  # in one pass
            value, pairs = kernel_sums(x, self.points, weights, scale, kernel, bandwidth)
        else:
            within, pairs = kernel_sums(rows, None, None, scale, kernel, bandwidth)
            own, _ = kernel_sums(x, self.points, weights, 0, kernel, bandwidth)
            value = within + across.total(own)
        diagonal = sum_of_diagonal(rows, kernel)
        if gaps is not None:
            gap = diagonal.detach() / m**2 - pairs / (m**2 * (m - 1))
            gaps.append(gap + (self.within[1] - self.within[0]))
        return value + constant + (diagonal / m**2 if estimator == "biased" else 0)


def anchors_of(arrays: dict[str, np.ndarray], members: list[Member], kernel: str, reals) -> list[Anchor]:
    """The anchor of each member for a kernel of KERNELS; 4 M (D + 1) bytes of the device for a member in float32.

    arrays: of the ensemble's .npz file. reals: the images that it was made of, from which the landmarks' features are computed
    again. Raises Problem if the arrays do not fit the kernel or the images.
    """
    rows, found = torch.from_numpy(arrays["landmarks"]), []
    if int(rows.max()) >= len(reals):
        raise Problem(f"an ensemble with anchor: true has landmark {int(rows.max())}, but the run has {len(reals)} real images; delete "
                      "the ensemble and run `snakemake all`")  # fmt: skip
    even = np.full(len(rows), 1 / len(rows))
    for k, member in enumerate(members):
        points = torch.cat(list(feature_blocks(member, reals, rows, BLOCK)))
        weights = torch.from_numpy(arrays.get(f"weights_{kernel}_{k}", even)).to(points)
        unbiased, biased = arrays[f"within_{kernel}_{k}"].tolist()
        found.append(Anchor(points, weights, (unbiased, biased)))
    return found
