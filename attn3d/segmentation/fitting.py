"""A network, its loss and its optimiser as Lightning trains them, within a number of steps, epochs or seconds."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torchio as tio
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, Timer
from monai.inferers import sliding_window_inference
from monai.losses import DeepSupervisionLoss, DiceCELoss
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from torch import Tensor, nn


class Diverged(ValueError):
    """A training whose loss, output or weights are not finite any more; its message says where and what to do."""


class SegmentationTask(LightningModule):
    """Dice and cross-entropy under AdamW, its learning rate falling to zero over the budget.

    Batches to train are torchio's: ``batch["image"]`` and ``batch["label"]``, the label as class indices. To
    validate, whole volumes: an image (1, C, *S), its classes (*S) and the ``"name"`` of the case; Dice is that of all
    volumes taken as one.

    Args:
        network: (B, C, *S) to logits (B, classes, *S), or in training to several, the finest first (as a list, or
            as DynUNet stacks them); the coarser ones count half as much each.
        learning_rate: at the start.
        patch_size: of the sliding window in validation.
        names: of the classes, without the background.
        loss: of logits and class indices; by default Dice and cross-entropy of each patch on its own, for classes
            that are in every patch.
    """

    def __init__(
        self,
        network: nn.Module,
        learning_rate: float = 6e-3,
        patch_size: Sequence[int] = (),
        names: Sequence[str] = (),
        loss: nn.Module | None = None,
    ):
        super().__init__()
        self.network = network
        self.learning_rate = learning_rate
        self.patch_size, self.names = tuple(patch_size), tuple(names)
        self.loss = DeepSupervisionLoss(loss or DiceCELoss(to_onehot_y=True, softmax=True))
        self.dice: dict[str, float] = {}  # of the last validation

    def training_step(self, batch: dict[str, Any], batch_index: int) -> Tensor:
        """The loss of one batch of patches."""
        image = batch["image"][tio.DATA]
        outputs = self.network(image)
        if isinstance(outputs, Tensor):
            outputs = [outputs] if outputs.dim() == image.dim() else list(outputs.unbind(1))
        loss = self.loss(outputs, batch["label"][tio.DATA])
        if not loss.isfinite():
            self.stop(f"the loss is {loss.item()}", batch.get("name", ()))
        return loss

    def stop(self, problem: str, cases: Sequence[str] = ()) -> NoReturn:
        """Ends a training that cannot go on.

        Raises:
            Diverged: always.
        """
        where = f", or look at the voxels of {', '.join(sorted(set(cases)))}" if cases else ""
        raise Diverged(
            f"{problem} in epoch {self.trainer.current_epoch + 1}; train again with a `learning_rate` below "
            f"{self.learning_rate:g}{where}"
        )

    def on_validation_epoch_start(self) -> None:
        """Forgets the volumes of the last validation."""
        self._counts = torch.zeros(len(self.names), 2, dtype=torch.float64)

    def validation_step(self, batch: dict[str, Tensor], batch_index: int) -> None:
        """Counts the voxels of one volume that are found and true, and those that are both; none of an empty batch."""
        if not batch:
            return
        logits = sliding_window_inference(
            batch["image"], self.patch_size, 2, self.network, overlap=0.25, device="cpu", sw_device=self.device
        )
        if not logits.isfinite().all():
            self.stop("the network's output is not finite", [batch["name"]])
        found, true = logits[0].argmax(0), batch["label"].cpu()
        for index in range(len(self.names)):
            one, other = found == index + 1, true == index + 1
            self._counts[index] += torch.tensor([(one & other).sum() * 2, one.sum() + other.sum()])

    def on_validation_epoch_end(self) -> None:
        """Logs Dice for each class, and their mean, over the volumes of all ranks."""
        counts = self.trainer.strategy.reduce(self._counts.to(self.device, torch.float32), reduce_op="sum").cpu()
        dice = torch.where(counts[:, 1] > 0, counts[:, 0] / counts[:, 1].clamp(min=1), 1.0)
        self.dice = {"dice": dice.mean().item()}
        self.dice |= {f"dice {name}": value for name, value in zip(self.names, dice.tolist(), strict=True)}
        self.log_dict(self.dice)

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW, and the polynomial decay customary in segmentation, driven by what is left of the budget."""
        optimizer = torch.optim.AdamW(self.network.parameters(), lr=self.learning_rate)
        decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: (1 - budget_used(self.trainer)) ** 0.9)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": decay, "interval": "step"}}


def budget_used(trainer: Trainer) -> float:
    """The part of the training that is over, 0 to 1, whether steps, epochs or seconds limit it."""
    used = trainer.global_step / trainer.estimated_stepping_batches
    for timer in (callback for callback in trainer.callbacks if isinstance(callback, Timer)):
        elapsed, remaining = timer.time_elapsed(), timer.time_remaining()
        used = max(used, elapsed / (elapsed + remaining))
    return min(1.0, used)


class BudgetBar(Callback):
    """One progress bar for the whole of a training: loss, steps a second and the time that is left."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("training"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[state]}"),
            TimeRemainingColumn(),
            TextColumn("left"),
        )
        self._loss: float | None = None

    def on_train_start(self, trainer: Trainer, task: LightningModule) -> None:
        """Shows the bar."""
        self._first = trainer.global_step
        self._bar = self._progress.add_task("training", total=1.0, state="")
        self._progress.start()

    def on_train_batch_end(
        self, trainer: Trainer, task: LightningModule, outputs: Any, batch: Any, batch_index: int
    ) -> None:
        """Moves the bar; the loss is averaged over about 20 steps, patches being so different."""
        loss = float(outputs["loss"])
        self._loss = loss if self._loss is None else 0.95 * self._loss + 0.05 * loss
        rate = (trainer.global_step - self._first) / self._progress.tasks[self._bar].elapsed
        dice = f"  Dice {task.dice['dice']:.3f}" if task.dice else ""
        state = f"loss {self._loss:.3f}{dice}  step {trainer.global_step} ({rate:.1f}/s)"
        self._progress.update(self._bar, completed=budget_used(trainer), state=state)

    def on_train_end(self, trainer: Trainer, task: LightningModule) -> None:
        """Leaves the finished bar on the screen."""
        self._progress.stop()

    def on_exception(self, trainer: Trainer, task: LightningModule, exception: BaseException) -> None:
        """Gives the screen back."""
        self._progress.stop()


def fit(
    network: nn.Module,
    patches: tio.SubjectsLoader,
    *,
    iterations: int | None = None,
    seconds: float | None = None,
) -> int:
    """Trains ``network`` in place until the first limit is reached, on one GPU where there is one.

    Args:
        network: (B, 1, *S) to logits (B, classes, *S).
        patches: from `patch_loader`.
        iterations: steps of the optimiser.
        seconds: of training.

    Returns:
        The number of steps taken.

    Raises:
        ValueError: when neither limit is given.
    """
    if iterations is None and seconds is None:
        raise ValueError("`iterations` or `seconds` must be given, got neither")
    with without_advice():
        trainer = Trainer(
            max_epochs=-1,
            max_steps=-1 if iterations is None else iterations,
            max_time=None if seconds is None else timedelta(seconds=seconds),
            devices=1,
            callbacks=[BudgetBar()],
            enable_checkpointing=False,
            logger=False,
            **QUIET,
        )
        trainer.fit(SegmentationTask(network), patches)
    return trainer.global_step


QUIET = {"enable_progress_bar": False, "enable_model_summary": False}  # `BudgetBar` spans the epochs


@contextmanager
def without_advice() -> Iterator[None]:
    """Without what Lightning advises about loaders: the queue has its own workers, an epoch its own loader."""
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for advice in (
                "does not have many workers",
                "smaller than the logging interval",
                "LeafSpec",
                "no `val_dataloader`",
            ):
                warnings.filterwarnings("ignore", message=f".*{advice}.*")
            yield
    finally:
        log.setLevel(level)
