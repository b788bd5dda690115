"""What was found in a folder: cases with their files, and what is wrong with it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

ANY = "any label"  # what scores call all labels taken as one


@dataclass(frozen=True)
class Case:
    """A person's scan.

    Attributes:
        name: unique in its data set.
        images: a file for each channel or one for all, or the folder of a DICOM series.
        label: none, one file, or one of each rater.
        volumes: how many channels its one file holds, in the last of four axes.
    """

    name: str
    images: tuple[Path, ...]
    label: tuple[Path, ...] = ()
    volumes: int = 1

    @property
    def channels(self) -> int:
        """How many images of it there are."""
        return len(self.images) * self.volumes


@dataclass(frozen=True)
class Dataset:
    """The cases in a folder and what their labels mean.

    Attributes:
        folder: where it is.
        cases: with labels, to train.
        test_cases: to predict.
        labels: value and name of each label, without the background.
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
    labels: dict[int, str] = field(default_factory=dict)
    modality: str = "unknown"
    threshold: float | None = None
    simulated: bool = False
    validation: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    layout: str = ""

    def __str__(self) -> str:
        """What was found, in a few lines."""
        channels = sorted({case.channels for case in self.cases + self.test_cases})
        images = "image" if channels == [1] else "images"
        raters = max((len(case.label) for case in self.cases), default=0)
        lines = [
            f"{self.layout}{', SIMULATED' if self.simulated else ''}: {self.folder}",
            f"  {len(self.cases)} cases with labels, {len(self.test_cases)} to test",
            f"  modality {self.modality}, {' or '.join(map(str, channels))} {images} a case",
            f"  labels {', '.join(f'{value} {name}' for value, name in self.labels.items()) or 'none'}",
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


def check_names(labels: Mapping[int, str]) -> None:
    """Checks that each label has a name of its own, by which it is scored.

    Raises:
        ValueError: when it has not.
    """
    known: dict[str, int] = {ANY: 0}
    for value, name in labels.items():
        if name in known:
            other = f"{known[name]} has" if known[name] else "all labels together have"
            raise ValueError(f"`labels` call {value} {name!r}, a name that {other}; give each a name of its own")
        known[name] = value
