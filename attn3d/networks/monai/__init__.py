"""The sites of MONAI's networks, imported when one is met."""

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
