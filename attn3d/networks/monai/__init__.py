"""The sites of MONAI's networks, imported on first use."""

from attn3d.networks.monai import (
    blocks,
    classifiers,
    generators,
    registration,
    segresnets,
    transformers,
    unets,
)

__all__ = ["blocks", "classifiers", "generators", "registration", "segresnets", "transformers", "unets"]
