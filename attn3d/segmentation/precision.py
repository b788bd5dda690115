"""Inference in bfloat16, where it is faster than float32 and agrees with it."""

import logging
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor, nn

from attn3d.segmentation.labels import Labels

logger = logging.getLogger("attn3d")

_COMPARED = 3  # calls
_MOST_APART = 0.1  # the largest difference of a probability


class BFloat16(nn.Module):
    """Computes a network in bfloat16 if this is faster and agrees with float32, and in float32 otherwise.

    The first three calls are computed in both precisions and return the result in float32. bfloat16 is used for the
    following calls if the median ratio of the times is below 1 and no probability differs by more than 0.1. The choice
    is logged.

    On a CPU, a convolution of PyTorch in bfloat16 can return values that were never written. Therefore later results
    are checked too: one that is not finite is computed again in float32, which is used from then on. Wrong values that
    are finite are not noticed.

    Args:
        network: (B, C, *patch) to logits (B, channels, *patch).
        labels: the labels of the output channels.
    """

    def __init__(self, network: nn.Module, labels: Labels):
        super().__init__()
        self.network, self.labels = network, labels
        self.used: bool | None = None  # not known before the first calls
        self.ratios: list[float] = []
        self.furthest = 0.0

    def forward(self, patches: Tensor) -> Tensor:
        """Returns the logits in float32."""
        if self.used is None:
            return self._compared(patches)
        if self.used:
            logits = self._in_bfloat16(patches)
            if logits.isfinite().all():
                return logits
            self._refuse("a result in bfloat16 is not finite")
        return self.network(patches)

    def _in_bfloat16(self, patches: Tensor) -> Tensor:
        with torch.autocast(patches.device.type, torch.bfloat16):
            return self.network(patches).float()

    def _compared(self, patches: Tensor) -> Tensor:
        """Computes the logits in both precisions, chooses one if the calls suffice, and returns those in float32."""
        exact, seconds = _timed(self.network, patches)
        quick, quick_seconds = _timed(self._in_bfloat16, patches)
        self.ratios.append(quick_seconds / seconds)
        for one, other in zip(exact, quick, strict=True):
            apart = (self.labels.probabilities(one) - self.labels.probabilities(other)).abs().max().item()
            self.furthest = max(self.furthest, apart)
            if not apart <= _MOST_APART:  # also NaN
                self._refuse(f"in bfloat16, a probability differs by {apart:.2g}")
                return exact
        if len(self.ratios) < _COMPARED:
            return exact
        ratio = median(self.ratios)
        if ratio < 1:
            self.used = True
            logger.info(
                "bfloat16 is used: it takes %.2f of the time of float32, and probabilities differ by at most %.2g",
                ratio,
                self.furthest,
            )
        else:
            self._refuse(f"bfloat16 takes {ratio:.2f} of its time")
        return exact

    def _refuse(self, reason: str) -> None:
        self.used = False
        logger.warning("float32 is used: %s", reason)


def _timed(network: Callable[[Tensor], Tensor], patches: Tensor) -> tuple[Tensor, float]:
    start = time.perf_counter()
    logits = network(patches)
    if logits.is_cuda:
        torch.cuda.synchronize(logits.device)
    return logits, time.perf_counter() - start
