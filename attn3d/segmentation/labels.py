"""What the values of a label map mean: labels of which a voxel has one, or regions of several values that overlap."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attn3d.segmentation.portable import choose_labels, probabilities_of

ANY = "any label"  # what scores call all labels taken as one


@dataclass(frozen=True)
class Labels:
    """The labels of a data set, which a network learns, `predict` writes and `evaluate` scores.

    Without a ``regions_class_order`` a voxel has one label or none, and a network gives probabilities of the background
    and of each label that sum to 1 (softmax). With it the labels are regions, as nnU-Net has them: a network gives the
    probability of each region by itself (sigmoid); where that is above 0.5 the region's value is written, in the order
    of the regions, a later one over an earlier one. So regions that hold others come first. A region of a label map are
    all voxels with one of its values.

    Args:
        names: of the labels.
        values: those that each label is made of, from 1 to 255; one of each where they are no regions.
        regions_class_order: the value that is written for each region.
        ignore: the value of voxels that nobody labelled, the highest. They are not learnt from, never predicted and
            not scored.

    Raises:
        ValueError: when a value cannot be, a label has no name of its own, or regions cannot be told apart by what is
            written for them.
    """

    names: tuple[str, ...]
    values: tuple[tuple[int, ...], ...]
    regions_class_order: tuple[int, ...] = ()
    ignore: int | None = None

    def __post_init__(self) -> None:
        if len(self.names) != len(self.values):
            raise ValueError(f"`values` must be given for each of {self.names}, got {self.values}")
        if unfit := [value for value in self.present if not 0 < value < 256]:
            raise ValueError(f"has the label {unfit[0]}; map its labels to 1 .. 255")
        for name, values in self._parts():
            if len(set(values)) != len(values) or not values:
                raise ValueError(f"`labels` give {name!r} the values {list(values)}; name at least one, each once")
        self._check_names()
        if self.ignore is not None and not max(self.present, default=0) < self.ignore < 256:
            highest = max(self.present, default=0)
            raise ValueError(f"`ignore` must be the highest value, above {highest} and up to 255, got {self.ignore}")
        self._check_order()

    @classmethod
    def of(cls, labels: "Labels | Mapping[int, str]", ignore: int | None = None) -> "Labels":
        """Labels as they are, or those of which a voxel has one, from their values and names."""
        if isinstance(labels, Labels):
            return labels
        values = sorted(labels)
        return cls(tuple(labels[value] for value in values), tuple((value,) for value in values), ignore=ignore)

    @property
    def regions(self) -> bool:
        """Whether labels are regions."""
        return bool(self.regions_class_order)

    @property
    def channels(self) -> tuple[str, ...]:
        """What each output channel of a network stands for."""
        return self.names if self.regions else ("background", *self.names)

    @property
    def written(self) -> tuple[int, ...]:
        """The value that is written for each output channel of a network."""
        return self.regions_class_order or (0, *(value for (value,) in self.values))

    @property
    def present(self) -> tuple[int, ...]:
        """All values of labels, without 0 and those to ignore, in ascending order."""
        return tuple(sorted({value for values in self.values for value in values}))

    @property
    def readable(self) -> tuple[int, ...]:
        """All values that a reference may have."""
        return (0, *self.present) if self.ignore is None else (0, *self.present, self.ignore)

    @property
    def legend(self) -> dict[int, str]:
        """Value and name for pictures of label maps; of several regions of a value, the name of the last one."""
        named = {value: name for name, one in self._parts() for value in one}
        return {value: named[value] for value in self.present}

    @property
    def one_holds_all(self) -> bool:
        """Whether a label is all labels taken as one."""
        return any(set(values) == set(self.present) for values in self.values)

    def __str__(self) -> str:
        """In a line."""
        listed = ", ".join(f"{'+'.join(map(str, one))} {name}" for name, one in self._parts())
        ignored = "" if self.ignore is None else f"; {self.ignore} is ignored"
        return f"{'regions' if self.regions else 'labels'} {listed or 'none'}{ignored}"

    def as_dict(self) -> dict[str, Any]:
        """Plain data, in the form of nnU-Net's ``dataset.json``."""
        named = self._parts()
        labels: dict[str, Any] = {name: list(values) if len(values) > 1 else values[0] for name, values in named}
        return labels if self.ignore is None else {**labels, "ignore": self.ignore}

    def masks(self, label: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """Name and mask of each label of a label map."""
        for name, values in self._parts():
            yield name, label == values[0] if len(values) == 1 else np.isin(label, values)

    def without_ignored(self, label: np.ndarray) -> np.ndarray:
        """A label map with 0 where voxels are to be ignored."""
        return self.compared(label, label)[1]

    def compared(self, prediction: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A prediction and its reference, both with 0 where the reference's voxels are to be ignored."""
        if self.ignore is None:
            return prediction, reference
        counting = reference != self.ignore
        return prediction * counting, reference * counting

    def changed(self, label: np.ndarray, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """A label map of what a change leaves of the mask of each label.

        Args:
            label: as a network's is, of values that are written.
            change: of a mask.
        """
        found = np.zeros_like(label)
        for (_, mask), value in zip(self.masks(label), self.written[-len(self.names) :], strict=True):
            found[change(mask)] = value
        return found

    def targets(self, label: Tensor) -> Tensor:
        """What a loss compares logits with: class indices (B, 1, *S), of regions a mask for each (B, regions, *S).

        Args:
            label: values (B, 1, *S), none of them to ignore.
        """
        return self._table(label.device)[label[:, 0].long()].movedim(-1, 1)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Probabilities (channels, *S) of logits."""
        return probabilities_of(logits, self.regions)

    def choose(self, probabilities: Tensor) -> Tensor:
        """The label map (*S), uint8, of probabilities (channels, *S)."""
        return choose_labels(probabilities, self.written, self.regions)

    def _parts(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Name and values of each label."""
        return zip(self.names, self.values, strict=True)

    def _table(self, device: torch.device) -> Tensor:
        """By value, the class index or the regions that hold it."""
        if not self.regions:
            table = torch.zeros(256, 1, dtype=torch.long, device=device)
            table[list(self.written), 0] = torch.arange(len(self.written), device=device)
            return table
        table = torch.zeros(256, len(self.names), device=device)
        for region, values in enumerate(self.values):
            table[list(values), region] = 1
        return table

    def _check_names(self) -> None:
        """Each label has a name of its own, by which it is scored."""
        known = {ANY: "all labels together have"}
        for name, values in self._parts():
            value = values[0] if len(values) == 1 else list(values)
            if name in known:
                raise ValueError(
                    f"`labels` call {value} {name!r}, a name that {known[name]}; give each a name of its own"
                )
            known[name] = f"{value} has"

    def _check_order(self) -> None:
        """What is written for each region tells it from the others."""
        order = self.regions_class_order
        if not order:
            if several := [name for name, values in self._parts() if len(values) > 1]:
                raise ValueError(
                    f"`labels` give {several[0]!r} several values, which needs `regions_class_order`: the value to "
                    f"write for each of the {len(self.names)} regions, those that hold others first"
                )
            if twice := [value for (value,), count in Counter(self.values).items() if count > 1]:
                raise ValueError(f"`labels` give {twice[0]} two names; give each label a value of its own")
            return
        if len(order) != len(self.names):
            raise ValueError(
                f"`regions_class_order` must have {len(self.names)} values, one for each of {', '.join(self.names)}, "
                f"got {list(order)}"
            )
        written = list(zip(self.names, self.values, order, strict=True))
        for name, values, value in written:
            if value not in values:
                raise ValueError(
                    f"`regions_class_order` {list(order)} writes {value} for {name!r}, which is not one of its values "
                    f"{list(values)}; list the values in the order of the regions in `labels`"
                )
        last = {value: name for name, values in self._parts() for value in values}
        for name, _, value in written:
            if last[value] != name:
                raise ValueError(
                    f"`regions_class_order` {list(order)} writes {value} for {name!r}, over which {last[value]!r} is "
                    "written; list regions that hold others first in `labels`, and give each a value of its own"
                )
