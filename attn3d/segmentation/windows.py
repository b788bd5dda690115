"""The windows that a CT is shown in, and whether its labels can be seen in them."""

import logging
from collections.abc import Mapping, Sequence

from attn3d.segmentation.fingerprint import Fingerprint

_SOFT_TISSUE = (40.0, 380.0)  # level and width in HU
BRAIN_WINDOWS = ((40.0, 80.0), (80.0, 200.0), _SOFT_TISSUE)  # brain, subdural, soft tissue
_A_HEADS = (-20.0, 180.0)  # HU; where the labels of a head lie, from fluid to clotted blood: the subdural window
_AIR = -200.0  # HU; air, and what scanners pad with, is below
_NARROWEST = 80.0  # HU

Windows = tuple[tuple[float, float], ...]
logger = logging.getLogger("attn3d")


def propose_windows(modality: str, fingerprint: Fingerprint) -> Windows | None:
    """The windows for scans of one image, each a level and a width; None for what is no CT.

    - Where the middle of every label lies between -20 and 180 HU, as in a head: brain, subdural and soft tissue.
    - Otherwise from percentile 0.5 to 99.5 of the labelled voxels, soft tissue, and from 0.5 to 99.5 of all voxels.
    - None, and a warning, where the data set is said to be CT but has neither air nor a head without its skull in it:
      these intensities are no Hounsfield units.

    Args:
        modality: "CT" or another.
        fingerprint: of the training cases.
    """
    if modality != "CT":
        return None
    scans = fingerprint.scans[0]
    if scans["percentile_0.5"] > _AIR and scans["percentile_99.5"] > _A_HEADS[1]:
        logger.warning(
            "The data set is said to be CT, but its intensities are no Hounsfield units (%g to %g, no air): they are "
            "shown with mean 0 and deviation 1. Set `windows` if it is CT.",
            scans["percentile_0.5"],
            scans["percentile_99.5"],
        )
        return None
    low, high = _A_HEADS
    if all(low < label["median"] < high for label in fingerprint.labelled.values()):
        return BRAIN_WINDOWS
    return _window(fingerprint.intensities[0]), _SOFT_TISSUE, _window(scans)


def warn_of_invisible(windows: Sequence[Sequence[float]] | None, fingerprint: Fingerprint) -> None:
    """Says which labels lie beyond all windows, where they look like what is around them."""
    if windows is None:
        return
    for name, label in fingerprint.labelled.items():
        if not any(abs(label["median"] - level) < width / 2 for level, width in windows):
            shown = ", ".join(f"{level:g}/{width:g}" for level, width in windows)
            logger.warning(
                "The label %r cannot be seen: its median of %g lies beyond all `windows` (%s). Set others.",
                name,
                label["median"],
                shown,
            )


def _window(intensities: Mapping[str, float]) -> tuple[float, float]:
    low, high = intensities["percentile_0.5"], intensities["percentile_99.5"]
    return round((low + high) / 2, 1), round(max(high - low, _NARROWEST), 1)
