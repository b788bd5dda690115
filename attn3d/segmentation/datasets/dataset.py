"""The description of a data set: its cases with their files, and problems with files."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from attn3d.segmentation.errors import FileError
from attn3d.segmentation.labels import Labels


@dataclass(frozen=True)
class Case:
    """A scan and its label.

    Attributes:
        name: a name that is unique in the data set.
        images: a file for each channel or one for all, or the folder of a DICOM series.
        label: no file, one file, or a file of each rater.
        volumes: number of channels of a 4-D file, along its last axis; 1 for 3-D files.
    """

    name: str
    images: tuple[Path, ...]
    label: tuple[Path, ...] = ()
    volumes: int = 1

    @property
    def channels(self) -> int:
        """The number of images of the case."""
        return len(self.images) * self.volumes


@dataclass(frozen=True)
class Dataset:
    """The cases in a folder, and the meaning of their labels.

    Attributes:
        folder: the folder.
        cases: cases with labels, for training.
        test_cases: cases without labels, for prediction.
        labels: the meaning of the label values.
        modality: "CT", "MRI" or "unknown".
        threshold: value above which a mask is 1, for masks with other values than 0 and 1.
        simulated: whether the scans are simulated.
        validation: names of the cases that the data set holds out; empty if it does not define this.
        problems: the problem of each file that is missing or has no partner. It is not in any case, except an image
            without a label, which may be a test case.
        failed: the problem of each scan to segment that cannot be used; it is not in ``problems``.
        layout: the name of the layout.
    """

    folder: Path
    cases: tuple[Case, ...] = ()
    test_cases: tuple[Case, ...] = ()
    labels: Labels = field(default_factory=lambda: Labels.of({}))
    modality: str = "unknown"
    threshold: float | None = None
    simulated: bool = False
    validation: tuple[str, ...] = ()
    problems: Mapping[str, str] = field(default_factory=dict)
    failed: Mapping[str, str] = field(default_factory=dict)
    layout: str = ""

    @property
    def left_out(self) -> tuple[str, ...]:
        """A line for each file that is not used."""
        return tuple(f"{file}: {problem}" for file, problem in {**self.problems, **self.failed}.items())

    def images_per_case(self) -> int:
        """The number of images of each case with a label; raises a `FileError` if it is not the same for all."""
        images = self.cases[0].channels
        if odd := [case for case in self.cases if case.channels != images]:
            raise FileError(odd[0].images[0], f"its case has {odd[0].channels} images, but others have {images}")
        return images

    def __str__(self) -> str:
        """A summary in a few lines."""
        channels = sorted({case.channels for case in self.cases + self.test_cases})
        images = "image" if channels == [1] else "images"
        raters = max((len(case.label) for case in self.cases), default=0)
        lines = [
            f"{self.layout}{', SIMULATED' if self.simulated else ''}: {self.folder}",
            f"  {len(self.cases)} cases with labels, {len(self.test_cases)} without",
            f"  modality {self.modality}, {' or '.join(map(str, channels))} {images} per case",
            f"  {self.labels}",
        ]
        if raters > 1:
            lines.append(f"  up to {raters} raters per case; majority vote, with the smallest value in a tie")
        if self.validation:
            lines.append(f"  {len(self.validation)} of the cases with labels are defined as validation cases")
        if self.threshold is not None:
            lines.append(f"  masks are 1 above {self.threshold:g}")
        if self.left_out:
            lines += ["  left out:", *(f"    {problem}" for problem in self.left_out)]
        return "\n".join(lines)
