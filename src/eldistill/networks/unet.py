# SPDX-License-Identifier: Apache-2.0
"""The common part of all U-Nets: an encoder whose outputs the decoder takes back, last first."""

from __future__ import annotations

import torch
from torch import nn

from eldistill.networks import layers

COVERED_BY = "networks/layers"


class UNet(nn.Module):
    """F(x, c_noise) = decode(*encode(x, c_noise)): x [n, c, r, r] of about unit variance -> [n, c, r, r].

    A network fills `enc` and `dec`, layers by name, where each `_block` of the decoder takes one output of the encoder.
    It says how the noise level and the labels are embedded, how x enters, how decoder and encoder are joined, and how
    the result leaves.
    """

    enc: nn.ModuleDict
    dec: nn.ModuleDict

    def forward(
        self,
        x: torch.Tensor,
        c_noise: torch.Tensor,
        labels: torch.Tensor | None = None,
        augment_labels: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """x [n, c, r, r]; c_noise [m]; labels [m, label_dim]; augment_labels [m, augment_dim]; m = n or 1."""
        return self.decode(*self.encode(x, c_noise, labels, augment_labels))

    def encode(
        self, x, c_noise, labels=None, augment_labels=None
    ) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]:
        """features [n, *features_shape], the last output of the encoder; all its outputs; the embedding [n or 1, e]."""
        embedding, skips = self._embed(c_noise, labels, augment_labels), []
        x = self._enter(x, embedding)
        for layer in self.enc.values():
            x = self._pass(layer, x, embedding)
            skips.append(x)
        return x, skips, embedding

    def decode(self, features, skips, embedding) -> torch.Tensor:
        """The result [n, c, r, r] from what `encode` returned: features, skips and embedding."""
        x, waiting = features, list(skips)
        for name, layer in self.dec.items():
            x = self._pass(layer, self._join(x, waiting.pop()) if "_block" in name else x, embedding)
        return self._leave(x)

    @staticmethod
    def _pass(layer: nn.Module, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        return layer(x, embedding) if isinstance(layer, layers.Recomputed) else layer(x)

    def _embed(self, c_noise, labels, augment_labels) -> torch.Tensor:
        raise NotImplementedError

    def _enter(self, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        return layers.cast_like(embedding, x)[0]

    def _join(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, skip], dim=1)

    def _leave(self, x: torch.Tensor) -> torch.Tensor:
        return x
