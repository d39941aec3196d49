# SPDX-License-Identifier: Apache-2.0
"""One-step generators from diffusion teachers, with and without the Embedding Loss (arXiv 2604.22379).

People who only want images need two names::

    import eldistill
    generator = eldistill.load_generator("generator_ema.safetensors")
    images = eldistill.sample(generator, 64, seed=0)          # uint8 [64, channel, height, width]

`EmbeddingLoss` is the loss for other training loops. Everything else is a step of the workflow:
``python -m eldistill --help``.
"""

import importlib

__version__ = "0.1.0"
__all__ = ["EmbeddingLoss", "load_generator", "sample"]
_MODULES = {"EmbeddingLoss": "embedding_loss", "load_generator": "sampling.generators", "sample": "sampling.generators"}


def __getattr__(name: str):
    # Imported on first use: the Snakefile reads this package too, and must not wait for torch.
    if name in __all__:
        return getattr(importlib.import_module(f"eldistill.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'eldistill' has no attribute {name!r}")
