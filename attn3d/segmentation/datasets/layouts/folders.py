"""Published layouts that are recognized by their folders and have fixed labels."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from attn3d.segmentation.datasets.dataset import Case, Dataset
from attn3d.segmentation.datasets.listing import files_at, pair, unread
from attn3d.segmentation.labels import Labels

BLEEDS = {1: "EDH", 2: "IPH", 3: "IVH", 4: "SAH", 5: "SDH"}
ANY_BLEED = {1: "ICH"}


@dataclass(frozen=True)
class Folders:
    """A layout of head CT. Paths have the form of `files_at`.

    Attributes:
        images: path of the scans.
        labels: path of the labels, with a file per rater.
        names: value and name of each label.
        tests: path of the scans without labels.
        cases: regular expression that the names of all cases must match.
        threshold: value above which a mask is 1, for masks with other values than 0 and 1.
    """

    images: str
    labels: str
    names: Mapping[int, str]
    tests: str | None = None
    cases: str = ".*"
    threshold: float | None = None

    def __call__(self, folder: Path) -> Dataset | None:
        """The data set in a folder, or None if the folder has no labels in this layout."""
        images, labels = files_at(folder, self.images), files_at(folder, self.labels)
        if not labels or not all(re.fullmatch(self.cases, name) for name in images):
            return None
        cases, problems = pair(images, labels)
        tests = files_at(folder, self.tests) if self.tests else {}
        places = [place for place in (self.images, self.labels, self.tests) if place]
        return Dataset(
            folder=folder,
            cases=cases,
            test_cases=tuple(Case(name, files) for name, files in tests.items()),
            labels=Labels.of(self.names),
            modality="CT",
            threshold=self.threshold,
            problems=problems | unread(folder, *places),
        )


bhsd = Folders("label_192/imagesTr/*", "label_192/labelsTr/*", BLEEDS, tests="label_192/imagesTs/*")
ct_ich = Folders("ct_scans/*", "masks/*", ANY_BLEED, threshold=0.1)
mbh_seg = Folders("*/image", "*/label_annot_*", BLEEDS)
seg_cq500 = Folders("data/volumes/*/CT", "data/volumes/*/ICH_mask", ANY_BLEED)
_instance2022 = Folders("train/data/*", "train/label/*", ANY_BLEED, tests="evaluation/*", cases=r"\d{3}")
_instance2022_training = Folders("data/*", "label/*", ANY_BLEED, cases=r"\d{3}")


def instance2022(folder: Path) -> Dataset | None:
    """INSTANCE 2022: the whole data set, or only its training folder."""
    return _instance2022(folder) or _instance2022_training(folder)
