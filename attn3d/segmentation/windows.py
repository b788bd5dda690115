"""The intensity windows of a CT, and a warning about labels outside of them."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from attn3d.segmentation.fingerprint import Fingerprint

_SOFT_TISSUE = (40.0, 380.0)  # level and width in HU
BRAIN_WINDOWS = ((40.0, 80.0), (80.0, 200.0), _SOFT_TISSUE)  # brain, subdural, soft tissue
_HEAD = (-20.0, 180.0)  # HU of labels in a head, from fluid to clotted blood: the subdural window
_AIR = -200.0  # HU; air and the padding of scanners are below
_CT_AIR = -800.0  # HU; the air of every CT is below, and few voxels of other scans
_NARROWEST = 80.0  # HU

Windows = tuple[tuple[float, float], ...]
logger = logging.getLogger("attn3d")


def propose_windows(modality: str, fingerprint: Fingerprint) -> Windows | None:
    """The windows of a CT, each a level and a width; None for other modalities.

    - If the median of every label is between -20 and 180 HU, as in a head: brain, subdural and soft tissue.
    - Otherwise: percentiles 0.5 to 99.5 of the labelled voxels, soft tissue, and percentiles 0.5 to 99.5 of all voxels.
    - None, with a warning, if the data set is declared as CT but has neither air nor the range of a skull-stripped
      head: its intensities are not Hounsfield units.
    """
    if modality != "CT":
        return None
    scans = fingerprint.scans[0]
    if scans["percentile_0.5"] > _AIR and scans["percentile_99.5"] > _HEAD[1]:
        logger.warning(
            "The data set is declared as CT, but its intensities are not Hounsfield units (%g to %g, no air): they are "
            "normalised to mean 0 and standard deviation 1. Set `windows` if it is CT.",
            scans["percentile_0.5"],
            scans["percentile_99.5"],
        )
        return None
    low, high = _HEAD
    if all(low < label["median"] < high for label in fingerprint.labelled.values()):
        return BRAIN_WINDOWS
    return _window(fingerprint.intensities[0]), _SOFT_TISSUE, _window(scans)


def warn_of_invisible(windows: Sequence[Sequence[float]] | None, fingerprint: Fingerprint) -> None:
    """Warns of labels outside of all windows, where they cannot be distinguished from their surroundings."""
    if windows is None:
        return
    for name, label in fingerprint.labelled.items():
        if not any(abs(label["median"] - level) < width / 2 for level, width in windows):
            shown = ", ".join(f"{level:g}/{width:g}" for level, width in windows)
            logger.warning(
                "The label %r is not visible: its median of %g is outside of all `windows` (%s). Set other windows.",
                name,
                label["median"],
                shown,
            )


def warn_of_other_modality(
    path: Path, darkest: float, windows: Sequence[Sequence[float]] | None, trained: Sequence[float]
) -> None:
    """Warns of a scan without air for a CT run, and of a CT for another run, if no training scan was like it.

    ``darkest`` is the `darkest_of` of the scan; ``trained`` the smallest and the largest one of the training scans,
    empty if they are unknown.
    """
    if not trained:
        return
    if windows is not None and trained[1] <= _AIR < darkest:
        logger.warning(
            "%s: has no air, its values are from %g, but all training scans have air; the run is for CT", path, darkest
        )
    if windows is None and darkest < _CT_AIR and trained[0] > _AIR:
        logger.warning(
            "%s: has the air of a CT, its values are from %g, but no training scan has it; the run is not for CT",
            path,
            darkest,
        )


def _window(intensities: Mapping[str, float]) -> tuple[float, float]:
    low, high = intensities["percentile_0.5"], intensities["percentile_99.5"]
    return round((low + high) / 2, 1), round(max(high - low, _NARROWEST), 1)
