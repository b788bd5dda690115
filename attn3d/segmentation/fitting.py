"""A network, its loss and its optimiser as Lightning trains them, within a number of steps or of seconds."""

import warnings
from datetime import timedelta
from typing import Any

import torch
import torchio as tio
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, Timer
from monai.losses import DiceCELoss
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from torch import Tensor, nn


class SegmentationTask(LightningModule):
    """Dice and cross-entropy under AdamW, its learning rate falling to zero over the budget.

    Batches are torchio's: ``batch["image"]`` and ``batch["label"]``, the label as class indices.

    Args:
        network: (B, 1, *S) to logits (B, classes, *S).
        learning_rate: at the start.
    """

    def __init__(self, network: nn.Module, learning_rate: float = 6e-3):
        super().__init__()
        self.network = network
        self.learning_rate = learning_rate
        self.loss = DiceCELoss(to_onehot_y=True, softmax=True)

    def training_step(self, batch: dict[str, Any], batch_index: int) -> Tensor:
        """The loss of one batch of patches."""
        loss = self.loss(self.network(batch["image"][tio.DATA]), batch["label"][tio.DATA])
        self.log("loss", loss, prog_bar=True)
        return loss

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
        self._bar = self._progress.add_task("training", total=1.0, state="")
        self._progress.start()

    def on_train_batch_end(
        self, trainer: Trainer, task: LightningModule, outputs: Any, batch: Any, batch_index: int
    ) -> None:
        """Moves the bar; the loss is averaged over about 20 steps, patches being so different."""
        loss = float(outputs["loss"])
        self._loss = loss if self._loss is None else 0.95 * self._loss + 0.05 * loss
        rate = trainer.global_step / self._progress.tasks[self._bar].elapsed
        state = f"loss {self._loss:.3f}  step {trainer.global_step} ({rate:.1f}/s)"
        self._progress.update(self._bar, completed=budget_used(trainer), state=state)

    def on_train_end(self, trainer: Trainer, task: LightningModule) -> None:
        """Leaves the finished bar on the screen."""
        self._progress.stop()

    def on_exception(self, trainer: Trainer, task: LightningModule, exception: BaseException) -> None:
        """Gives the screen back."""
        self._progress.stop()


def train(
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
    trainer = Trainer(
        max_epochs=-1,
        max_steps=-1 if iterations is None else iterations,
        max_time=None if seconds is None else timedelta(seconds=seconds),
        devices=1,
        callbacks=[BudgetBar()],
        enable_progress_bar=False,  # the bar above spans the epochs
        enable_model_summary=False,
        enable_checkpointing=False,
        logger=False,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")  # the queue has its own
        trainer.fit(SegmentationTask(network), patches)
    return trainer.global_step
