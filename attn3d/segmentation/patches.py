"""The Lightning data module of a training: its patches, and the volumes of its validation."""

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
    """Augmented patches of prepared cases. A patch depends only on the seed, the epoch and its index.

    The fraction `around_labels` of the patches is placed on a label: a label of the case is drawn, then one of its
    voxels. The patch is centred on this voxel, but moved to stay inside the scan. All other patches, and those of cases
    without labels, have random positions. In a case with ignored voxels, their centre is drawn from the other voxels.
    Along an axis where the scan is smaller than a patch, the scan is centred and extended by its edges.
    """

    def __init__(self, cases: Sequence[PreparedCase], configuration: Configuration):
        self.cases, self.configuration = cases, configuration
        self.size = np.array(configuration.patch_size)
        self._augmentation = Augmentation(configuration)

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
        return {"image": to_channels(image, self.configuration.windows), "label": label[None], "name": case.name}


def draw_corner(file: Any, size: np.ndarray, share: float, random: np.random.Generator) -> np.ndarray:
    """Draws the first voxel of a patch of ``size`` voxels in the file of a prepared case, by the rules of `Patches`."""
    names = set(file.keys())
    shape = np.array(file.get_slice("label").get_shape())
    last = np.maximum(shape - size, 0)  # the last corner of a patch inside the scan
    labels = sorted(name for name in names if name.startswith("foreground"))
    chosen = labels[random.integers(len(labels))] if labels and random.random() < share else "annotated"
    if chosen in names:  # centred on a voxel of a label, or on one that is not ignored
        indices = file.get_slice(chosen)
        place = int(random.integers(indices.get_shape()[0]))
        voxel = np.array(np.unravel_index(indices[place : place + 1][0], shape))
        corner = np.clip(voxel - size // 2, 0, last)
    else:  # anywhere
        corner = random.integers(last + 1)
    return np.where(shape < size, -((size - shape) // 2), corner)


def read_box(file: Any, name: str, corner: np.ndarray, size: np.ndarray) -> Tensor:
    """Reads a box of a prepared array. Outside of the array, its edges are repeated."""
    values = file.get_slice(name)
    shape = np.array(values.get_shape()[-3:])
    low, high = np.clip(corner, 0, shape - 1), np.clip(corner + size, 1, shape)
    inside = [slice(*ends) for ends in zip(low.tolist(), high.tolist(), strict=True)]
    box = values[(slice(None), *inside) if len(values.get_shape()) == 4 else tuple(inside)]
    beyond = [*zip((low - corner).tolist(), (corner + size - high).tolist(), strict=True)]
    return torch.from_numpy(np.pad(box, [(0, 0)] * (box.ndim - 3) + beyond, mode="edge"))


class EpochSampler(DistributedSampler):
    """Yields (epoch, index) for the indices of this rank, in a random order that changes with the epoch."""

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((self.epoch, index) for index in super().__iter__())


class PatchData(LightningDataModule):
    """Augmented patches of the training cases, whole volumes of the validation cases.

    A training that is resumed after an epoch has the same patches as one that was not interrupted. By default, 4
    workers load patches for a GPU, and none for the CPU.
    """

    trainer: Trainer  # set by Lightning before batches are loaded

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
        self._epoch = 0  # of the first patches; after a resumption, workers load them before Lightning sets the epoch

    def prepare_data(self) -> None:
        """Resamples all cases to the working grid. Lightning calls it in one process per machine."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for case, prepared in track(self.cases.items(), "resampling the cases", disable=self.quiet):
            with failing_as(case.images[0]):
                prepared.write(self.dataset, self.configuration)

    def train_dataloader(self) -> DataLoader:
        """Returns the loader of patches for this rank. Lightning sets the epoch of the sampler."""
        patches = Patches(self.training, self.configuration)
        world_size, rank = self.trainer.world_size, self.trainer.global_rank
        sampler = EpochSampler(patches, world_size, rank, seed=self.configuration.seed)
        sampler.set_epoch(self._epoch)
        return DataLoader(
            patches,
            batch_size=self.configuration.batch_size,
            sampler=sampler,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            generator=torch.Generator(),  # for the seeds of the workers, which are not used
        )

    def state_dict(self) -> dict[str, Any]:
        """Returns the epoch after that of a checkpoint, which is saved at the end of an epoch."""
        return {"epoch": self.trainer.current_epoch + 1}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the epoch."""
        self._epoch = state["epoch"]

    def val_dataloader(self) -> DataLoader:
        """Returns the loader of validation cases for this rank, one whole volume per batch.

        A rank without cases gets an empty batch, since all ranks must take part in the sum of the counts.
        """
        mine = self.validation[self.trainer.global_rank :: self.trainer.world_size]
        if not mine:
            return DataLoader([{}], batch_size=None)  # type: ignore[arg-type]  # any sequence works
        return DataLoader(mine, batch_size=None, collate_fn=self._volume)  # type: ignore[arg-type]

    def _volume(self, case: PreparedCase) -> dict[str, Any]:
        """Channels (1, C, *S), label (*S) and the name of a prepared case."""
        with case.open() as file:
            image, label = (torch.from_numpy(file.get_tensor(name)) for name in ("image", "label"))
        return {"image": to_channels(image, self.configuration.windows)[None], "label": label, "name": case.name}
