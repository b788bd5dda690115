"""What was found in a folder: cases with their files, and what is wrong with it."""

from dataclasses import dataclass, field
from pathlib import Path

from attn3d.segmentation.labels import Labels


@dataclass(frozen=True)
class Case:
    """A person's scan.

    Attributes:
        name: unique in its data set.
        images: a file for each channel, or the folder of a DICOM series.
        label: none, one file, or one of each rater.
    """

    name: str
    images: tuple[Path, ...]
    label: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Dataset:
    """The cases in a folder and what their labels mean.

    Attributes:
        folder: where it is.
        cases: with labels, to train.
        test_cases: to predict.
        labels: what their values mean.
        modality: "CT", "MRI" or "unknown".
        threshold: above which a binary mask means 1, where its values are not 0 and 1.
        simulated: whether all of it is.
        validation: names of those of the cases that the data set itself holds out; none, where it leaves that open.
        problems: a line for each file that is missing or has no partner; such files are in no case.
        layout: the published layout that the folder has.
    """

    folder: Path
    cases: tuple[Case, ...] = ()
    test_cases: tuple[Case, ...] = ()
    labels: Labels = field(default_factory=lambda: Labels.of({}))
    modality: str = "unknown"
    threshold: float | None = None
    simulated: bool = False
    validation: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    layout: str = ""

    def __str__(self) -> str:
        """What was found, in a few lines."""
        channels = sorted({len(case.images) for case in self.cases + self.test_cases})
        images = "image" if channels == [1] else "images"
        raters = max((len(case.label) for case in self.cases), default=0)
        lines = [
            f"{self.layout}{', SIMULATED' if self.simulated else ''}: {self.folder}",
            f"  {len(self.cases)} cases with labels, {len(self.test_cases)} to test",
            f"  modality {self.modality}, {' or '.join(map(str, channels))} {images} a case",
            f"  {self.labels}",
        ]
        if raters > 1:
            lines.append(f"  up to {raters} raters a case; the value with most votes counts, the smaller one in a tie")
        if self.validation:
            lines.append(f"  {len(self.validation)} of the cases with labels are to validate on, as it says itself")
        if self.threshold is not None:
            lines.append(f"  masks count where they exceed {self.threshold:g}")
        if self.problems:
            lines += ["  left out:", *(f"    {problem}" for problem in self.problems)]
        return "\n".join(lines)
