"""The meaning of the values of a label map: labels that exclude each other, or regions that may overlap."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attn3d.segmentation.portable import choose_labels, probabilities_of

ANY = "any label"  # the name in scores for all labels taken as one


@dataclass(frozen=True)
class Labels:
    """The labels of a data set, which a network learns, `predict` writes and `evaluate` scores.

    Without ``regions_class_order``, a voxel has at most one label. The network gives probabilities of the background
    and of each label, which sum to 1 (softmax). With it, the labels are regions as in nnU-Net. The network gives the
    probability of each region separately (sigmoid). If it is above 0.5, the value of the region is written, in the
    order of the regions; a later region overwrites an earlier one, so a region that contains another comes first. In a
    label map, a region consists of all voxels with one of its values.

    Args:
        names: the name of each label.
        values: the values of each label, from 1 to 255; a single value if the labels are not regions.
        regions_class_order: the value that is written for each region.
        ignore: the value of voxels without annotation, which must be the highest value. These voxels have no loss, are
            not scored, and the value is never predicted.

    Raises:
        ValueError: when a value is out of range, two labels have the same name, or two regions cannot be distinguished
            in the label map that is written.
    """

    names: tuple[str, ...]
    values: tuple[tuple[int, ...], ...]
    regions_class_order: tuple[int, ...] = ()
    ignore: int | None = None

    def __post_init__(self) -> None:
        if len(self.names) != len(self.values):
            raise ValueError(f"`values` must be given for each of {self.names}, got {self.values}")
        if unfit := [value for value in self.present if not 0 < value < 256]:
            raise ValueError(f"`labels` must have values from 1 to 255, got {unfit[0]}; map them")
        for name, values in self._parts():
            if len(set(values)) != len(values) or not values:
                raise ValueError(f"`labels` give {name!r} the values {list(values)}; name at least one, each once")
        if twice := [name for name, times in Counter((ANY, *self.names)).items() if times > 1]:
            given = [list(values) for name, values in self._parts() if name == twice[0]]
            raise ValueError(
                f"`labels` has the name {twice[0]!r} for {given}; give each label its own name, other than {ANY!r}"
            )
        if self.ignore is not None and not max(self.present, default=0) < self.ignore < 256:
            highest = max(self.present, default=0)
            raise ValueError(f"`ignore` must be the highest value, above {highest} and up to 255, got {self.ignore}")
        self._check_order()

    @classmethod
    def of(cls, labels: "Labels | Mapping[int, str]") -> "Labels":
        """Labels that exclude each other, from their values and names; `Labels` are returned unchanged."""
        if isinstance(labels, Labels):
            return labels
        if not isinstance(labels, Mapping) or not all(isinstance(value, int | np.integer) for value in labels):
            raise TypeError(f"`labels` must be names by value, such as {{1: 'lesion'}}, got {labels!r}")
        values = sorted(map(int, labels))
        return cls(tuple(labels[value] for value in values), tuple((value,) for value in values))

    @property
    def regions(self) -> bool:
        """Whether the labels are regions."""
        return bool(self.regions_class_order)

    @property
    def channels(self) -> tuple[str, ...]:
        """The name of each output channel of a network."""
        return self.names if self.regions else ("background", *self.names)

    @property
    def written(self) -> tuple[int, ...]:
        """The value that is written for each output channel."""
        return self.regions_class_order or (0, *(value for (value,) in self.values))

    @property
    def present(self) -> tuple[int, ...]:
        """The values of all labels in ascending order, without 0 and the ignored value."""
        return tuple(sorted({value for values in self.values for value in values}))

    @property
    def readable(self) -> tuple[int, ...]:
        """All values that are allowed in a reference."""
        return (0, *self.present) if self.ignore is None else (0, *self.present, self.ignore)

    @property
    def legend(self) -> dict[int, str]:
        """Values and names for pictures of label maps. A value of several regions has the name of the last one."""
        named = {value: name for name, one in self._parts() for value in one}
        return {value: named[value] for value in self.present}

    @property
    def one_holds_all(self) -> bool:
        """Whether one of the labels contains all values."""
        return any(set(values) == set(self.present) for values in self.values)

    def __str__(self) -> str:
        """One line with all values and names."""
        listed = ", ".join(f"{'+'.join(map(str, one))} {name}" for name, one in self._parts())
        ignored = "" if self.ignore is None else f"; {self.ignore} is ignored"
        return f"{'regions' if self.regions else 'labels'} {listed or 'none'}{ignored}"

    def as_dict(self) -> dict[str, Any]:
        """Plain data, in the form of nnU-Net's ``dataset.json``."""
        named = self._parts()
        labels: dict[str, Any] = {name: list(values) if len(values) > 1 else values[0] for name, values in named}
        return labels if self.ignore is None else {**labels, "ignore": self.ignore}

    def masks(self, label: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """Yields the name and the mask of each label of a label map."""
        for name, values in self._parts():
            yield name, label == values[0] if len(values) == 1 else np.isin(label, values)

    def without_ignored(self, label: np.ndarray) -> np.ndarray:
        """A label map with 0 in ignored voxels."""
        return self.compared(label, label)[1]

    def compared(self, prediction: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A prediction and its reference, both with 0 in the voxels that the reference ignores."""
        if self.ignore is None:
            return prediction, reference
        counting = reference != self.ignore
        return prediction * counting, reference * counting

    def changed(self, label: np.ndarray, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """The label map, whose values are those of ``written``, after a change of the mask of each label."""
        found = np.zeros_like(label)
        for (_, mask), value in zip(self.masks(label), self.written[-len(self.names) :], strict=True):
            found[change(mask)] = value
        return found

    def targets(self, label: Tensor) -> Tensor:
        """The targets of a loss, of label values (B, 1, *S) without ignored voxels: class indices (B, 1, *S), or masks
        of the regions (B, regions, *S).
        """
        kind, channels = (torch.float32, len(self.names)) if self.regions else (torch.long, 1)
        table = torch.zeros(256, channels, dtype=kind, device=label.device)
        for index, values in enumerate(self.values):
            table[list(values), index * self.regions] = 1 if self.regions else 1 + index
        return table[label[:, 0].long()].movedim(-1, 1)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Probabilities (channels, *S) of logits."""
        return probabilities_of(logits, self.regions)

    def choose(self, probabilities: Tensor) -> Tensor:
        """The label map (*S), uint8, of probabilities (channels, *S)."""
        return choose_labels(probabilities, self.written, self.regions)

    def _parts(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Name and values of each label."""
        return zip(self.names, self.values, strict=True)

    def _check_order(self) -> None:
        """Checks that all regions can be read from the label map that is written."""
        order = self.regions_class_order
        if not order:
            if several := [name for name, values in self._parts() if len(values) > 1]:
                raise ValueError(
                    f"`labels` give {several[0]!r} several values, which needs `regions_class_order`: the value to "
                    f"write for each of the {len(self.names)} regions; list regions that contain others first"
                )
            if twice := [value for (value,), count in Counter(self.values).items() if count > 1]:
                raise ValueError(f"`labels` give {twice[0]} two names; give each label its own value")
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
                    f"`regions_class_order` {list(order)} writes {value} for {name!r}, but {last[value]!r} overwrites "
                    "it; list regions that contain others first in `labels`, and give each region its own value"
                )
