"""The patches of a training and the volumes of its validation, as Lightning asks for them."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import LightningDataModule, Trainer
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from attn3d.segmentation.augmentation import Augmentation, margin, warp
from attn3d.segmentation.datasets import Case
from attn3d.segmentation.datasets import Dataset as CaseDataset
from attn3d.segmentation.errors import failing_as
from attn3d.segmentation.portable import to_channels
from attn3d.segmentation.preprocessing import PreparedCase
from attn3d.segmentation.settings import Configuration


class Patches(Dataset):
    """Augmented patches of prepared cases; each follows from the seed, the epoch and its index alone.

    A part of them, `around_labels`, holds a label by intent: a label is drawn among those that the case has, then
    one of its voxels, which is the patch's middle unless the border is nearer: there the patch ends at the border.
    The others lie anywhere, as all do in a case without labels; where a case has voxels to ignore, their middle is one
    of the others. Along an axis where the scan is smaller than a patch, it is in the middle and extended by its edges.

    Args:
        cases: as they were written.
        configuration: of the run.
    """

    def __init__(self, cases: Sequence[PreparedCase], configuration: Configuration):
        self.cases, self.configuration = cases, configuration
        self.size = np.array(configuration.patch_size)
        windows = configuration.windows
        self._augmentation = Augmentation(configuration.spacing, configuration.mirror, hounsfield=windows is not None)

    def __len__(self) -> int:
        return len(self.cases) * self.configuration.patches_per_case

    def __getitem__(self, place: tuple[int, int]) -> dict[str, Any]:
        """The patch at (epoch, index): ``image`` (C, *S), ``label`` (1, *S), uint8, and the ``name`` of the case."""
        epoch, index = place
        random = np.random.default_rng([self.configuration.seed, epoch, index])
        case = self.cases[index % len(self.cases)]
        with case.open() as file:
            corner = draw_corner(file, self.size, self.configuration.around_labels, random)
            matrix = self._augmentation.draw_affine(random)
            more = 0 if matrix is None else margin(matrix, self.size)
            image, label = (read_box(file, name, corner - more, self.size + 2 * more) for name in ("image", "label"))
        if matrix is not None:
            image, label = warp(image, label, matrix, self.size.tolist())
        image, label = self._augmentation(image, label, random)
        return {
            "image": to_channels(image, self.configuration.windows),
            "label": label[None],
            "name": case.name,
        }


def draw_corner(file: Any, size: np.ndarray, share: float, random: np.random.Generator) -> np.ndarray:
    """Where a patch begins, as `Patches` says.

    Args:
        file: of a prepared case.
        size: voxels of the patch.
        share: of the patches that hold a label by intent, 0 to 1.
        random: what it is drawn from.
    """
    shape = np.array(file.get_slice("label").get_shape())
    room = np.maximum(shape - size, 0)
    labels = sorted(name for name in file.keys() if name.startswith("foreground"))  # noqa: SIM118  a file, no mapping
    middles = labels[random.integers(len(labels))] if labels and random.random() < share else "annotated"
    if middles in file.keys():  # noqa: SIM118
        voxels = file.get_slice(middles)
        place = int(random.integers(voxels.get_shape()[0]))
        voxel = np.array(np.unravel_index(voxels[place : place + 1][0], shape))
        corner = np.clip(voxel - size // 2, 0, room)
    else:
        corner = random.integers(room + 1)
    return np.where(shape < size, -((size - shape) // 2), corner)


def read_box(file: Any, name: str, corner: np.ndarray, size: np.ndarray) -> Tensor:
    """A box of a prepared array, with its edges repeated where the box lies beyond."""
    values = file.get_slice(name)
    shape = np.array(values.get_shape()[-3:])
    low, high = np.clip(corner, 0, shape - 1), np.clip(corner + size, 1, shape)
    inside = [slice(*ends) for ends in zip(low.tolist(), high.tolist(), strict=True)]
    box = values[(slice(None), *inside) if len(values.get_shape()) == 4 else tuple(inside)]
    beyond = [*zip((low - corner).tolist(), (corner + size - high).tolist(), strict=True)]
    return torch.from_numpy(np.pad(box, [(0, 0)] * (box.ndim - 3) + beyond, mode="edge"))


class EpochSampler(DistributedSampler):
    """This rank's share of the indices in an order drawn anew for each epoch, each with the epoch."""

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((self.epoch, index) for index in super().__iter__())


class Volumes(Dataset):
    """Channels (1, C, *S), label (*S) and the name of prepared cases."""

    def __init__(self, cases: Sequence[PreparedCase], configuration: Configuration):
        self.cases, self.windows = cases, configuration.windows

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> dict[str, Any]:
        with self.cases[index].open() as file:
            image, label = (torch.from_numpy(file.get_tensor(name)) for name in ("image", "label"))
        return {
            "image": to_channels(image, self.windows)[None],
            "label": label,
            "name": self.cases[index].name,
        }


class PatchData(LightningDataModule):
    """Augmented patches of the training cases, whole volumes of the validation cases.

    Whoever resumes a training after an epoch goes on with the patches that it would have had.

    Args:
        configuration: of the run.
        dataset: that the cases are of.
        training: cases.
        validation: cases.
        folder: for the cases on the working grid.
        workers: processes that load; by default 4 for a GPU, and none on the CPU.
        quiet: no progress bar.
    """

    trainer: Trainer  # Lightning sets it before it asks for batches

    def __init__(
        self,
        configuration: Configuration,
        dataset: CaseDataset,
        training: Sequence[Case],
        validation: Sequence[Case],
        folder: Path,
        workers: int | None = None,
        quiet: bool = False,
    ):
        super().__init__()
        self.configuration, self.dataset, self.quiet = configuration, dataset, quiet
        self.folder, self.cases = folder, {case: PreparedCase(case, folder) for case in (*training, *validation)}
        self.training, self.validation = ([self.cases[case] for case in part] for part in (training, validation))
        self.workers = (4 if torch.cuda.is_available() else 0) if workers is None else workers

    def prepare_data(self) -> None:
        """Brings all cases to the working grid; only one process on a machine does."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for case, prepared in track(self.cases.items(), "to the working grid", disable=self.quiet):
            with failing_as(case.images[0]):
                prepared.write(self.dataset, self.configuration)

    def train_dataloader(self) -> DataLoader:
        """The patches of this rank; Lightning tells the sampler the epoch."""
        patches = Patches(self.training, self.configuration)
        world_size, rank = self.trainer.world_size, self.trainer.global_rank
        return DataLoader(
            patches,
            batch_size=self.configuration.batch_size,
            sampler=EpochSampler(patches, world_size, rank, seed=self.configuration.seed),
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            generator=torch.Generator(),  # of the workers' seeds, which nothing draws from
        )

    def val_dataloader(self) -> DataLoader:
        """The validation cases of this rank, whole, one at a time.

        A rank without any gets an empty batch: it has to take part when the ranks sum up what they found.
        """
        mine = self.validation[self.trainer.global_rank :: self.trainer.world_size]
        if not mine:
            return DataLoader([{}], batch_size=None)  # type: ignore[arg-type]  # any sequence will do
        return DataLoader(Volumes(mine, self.configuration), batch_size=None)
