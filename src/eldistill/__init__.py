# SPDX-License-Identifier: Apache-2.0
"""One-step generators from diffusion teachers, with and without the Embedding Loss (arXiv 2604.22379).

People who only want images need two names::

    import eldistill
    generator = eldistill.load_generator("generator_ema.safetensors")
    images = eldistill.sample(generator, 64, seed=0)          # uint8 [64, channel, height, width]

Everything else is a step of the workflow: ``python -m eldistill --help``.
"""

__version__ = "0.1.0"
__all__ = ["load_generator", "sample"]


def __getattr__(name: str):
    # Imported on first use: the Snakefile reads this package too, and must not wait for torch.
    if name in __all__:
        from eldistill.sampling import generators as sampling

        return getattr(sampling, name)
    raise AttributeError(f"module 'eldistill' has no attribute {name!r}")
