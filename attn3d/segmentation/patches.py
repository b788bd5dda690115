"""The patches of a training and the volumes of its validation, as Lightning asks for them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torchio as tio
from lightning import LightningDataModule, seed_everything
from rich.progress import track
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from attn3d.segmentation.configuration import Configuration
from attn3d.segmentation.data import LabelledPatches, augmentation
from attn3d.segmentation.datasets import Case
from attn3d.segmentation.datasets import Dataset as CaseDataset
from attn3d.segmentation.errors import failing_as
from attn3d.segmentation.preprocessing import prepared_subject, to_channels, write_prepared

_CASES_IN_QUEUE = 12  # whose patches are mixed
_AROUND_LABELS = 2 / 3  # of the patches, as in nnU-Net a third or more


def ct_augmentation() -> tio.Transform:
    """What one head, position or scanner does to a CT and another does not, in Hounsfield units."""
    return tio.Compose(
        [
            tio.RandomFlip(axes=0),
            tio.RandomAffine(scales=0.1, degrees=10, translation=5, default_pad_value="minimum", p=0.3),
            tio.RandomNoise(std=(0, 3), p=0.3),
        ]
    )


class PatchData(LightningDataModule):
    """Augmented patches of the training cases, whole volumes of the validation cases.

    The patches of an epoch follow from the seed, the epoch and the rank alone: whoever resumes a training after an
    epoch goes on with the patches that it would have had.

    Args:
        configuration: of the run.
        dataset: that the cases are of.
        training: cases.
        validation: cases.
        folder: for the cases on the working grid.
        workers: processes that load; by default 4 for a GPU, and none on the CPU.
        quiet: no progress bar.
    """

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
        self.configuration, self.dataset, self.folder, self.quiet = configuration, dataset, folder, quiet
        self.training, self.validation, self.workers = list(training), list(validation), workers

    def prepare_data(self) -> None:
        """Brings all cases to the working grid; only one process on a machine does."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for case in track([*self.training, *self.validation], "to the working grid", disable=self.quiet):
            with failing_as(case.images[0]):
                write_prepared(case, self.dataset, self.configuration, self.folder)

    def train_dataloader(self) -> DataLoader:
        """The patches of the trainer's current epoch."""
        rank, ranks = self.trainer.global_rank, self.trainer.world_size
        seed = _seed(self.configuration.seed, self.trainer.current_epoch, rank)
        seed_everything(seed, verbose=False)  # torchio draws from PyTorch's generator
        cases = [prepared_subject(case, self.folder) for case in self.training]
        windows = self.configuration.windows
        transform = tio.Compose(
            [ct_augmentation(), tio.Lambda(lambda image: to_channels(image, windows), types_to_apply=[tio.INTENSITY])]
            if windows is not None
            else [augmentation()]
        )
        subjects = tio.SubjectsDataset(cases, transform=transform)
        shares = None
        if ranks > 1:
            shares = DistributedSampler(subjects, ranks, rank, seed=self.configuration.seed)
            shares.set_epoch(self.trainer.current_epoch)
        count = self.configuration.patches_per_case
        workers = self.workers
        if workers is None:
            workers = 0 if self.trainer.accelerator.__class__.__name__ == "CPUAccelerator" else 4
        queue = tio.Queue(
            subjects,
            max_length=count * min(len(cases), _CASES_IN_QUEUE),
            samples_per_volume=count,
            sampler=LabelledPatches(self.configuration.patch_size, _AROUND_LABELS),
            subject_sampler=shares,
            shuffle_subjects=shares is None,
            num_workers=workers,
        )
        generator = torch.Generator().manual_seed(seed)
        return tio.SubjectsLoader(queue, batch_size=self.configuration.batch_size, generator=generator)

    def val_dataloader(self) -> DataLoader:
        """The validation cases of this rank, whole, one at a time.

        A rank without any gets an empty batch: it has to take part when the ranks sum up what they found.
        """
        mine = self.validation[self.trainer.global_rank :: self.trainer.world_size]
        if not mine:
            return DataLoader([{}], batch_size=None)
        return DataLoader(_Volumes(mine, self.folder, self.configuration), batch_size=None)


class _Volumes(Dataset):
    """Channels (1, C, *S), classes (*S) and the name of prepared cases."""

    def __init__(self, cases: Sequence[Case], folder: Path, configuration: Configuration):
        self.cases, self.folder, self.windows = cases, folder, configuration.windows

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> dict[str, Any]:
        subject = prepared_subject(self.cases[index], self.folder)
        return {
            "image": to_channels(subject["image"].data.float(), self.windows)[None],
            "label": subject["label"].data[0].long(),
            "name": subject["name"],
        }


def _seed(*numbers: int) -> int:
    """One seed from several numbers, different for different ones."""
    seed = 0
    for number in numbers:
        seed = (seed * 1_000_003 + number + 1) % 2**32
    return seed
