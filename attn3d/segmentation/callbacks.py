"""What happens beside the steps of a training: its budget, its progress bar, its checkpoints and its table.

Where more is asked of the task than Lightning's, it is a `SegmentationTask`.
"""

import io
import logging
import sys
import time
from copy import deepcopy
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.io import TorchCheckpointIO
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from attn3d.segmentation.errors import FileError
from attn3d.segmentation.networks import not_finite
from attn3d.segmentation.runs import Run
from attn3d.segmentation.writing import finished_file, write_table

logger = logging.getLogger("attn3d")
_VALIDATIONS = 5  # in a budget of minutes
_SHARE = 0.05  # of the time that they may take


class Minutes(Callback):
    """Ends a training after so many minutes, its last validation included, and spreads its validations over them.

    Time that was trained before a resumption counts. All ranks go by the clock of the first.

    Args:
        minutes: from the first step on.
    """

    def __init__(self, minutes: float):
        self.total = 60 * minutes
        self.seconds = self._before = 0.0  # up to this step; before this start
        self.validation = 0.0  # seconds that the last one took
        self._last = 0.0  # when it ended

    @property
    def used(self) -> float:
        """The part that is over, 0 to 1; the last validation is put by."""
        return min(1.0, self.seconds / max(self.total - self.validation, 1e-9))

    def _read(self, trainer: Trainer) -> None:
        self.seconds = trainer.strategy.broadcast(self._before + time.perf_counter() - self._start)

    def on_train_start(self, trainer: Trainer, task: LightningModule) -> None:
        """Starts the clock."""
        self._start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, task: LightningModule, outputs: Any, batch: Any, batch_index: int
    ) -> None:
        """Reads the clock: is the time over, and is a validation due at the end of this epoch?"""
        self._read(trainer)
        trainer.should_stop = self.used >= 1
        due = self.seconds - self._last >= max(self.total / _VALIDATIONS, self.validation / _SHARE)
        trainer.check_val_every_n_epoch = 1 if due or trainer.should_stop else sys.maxsize

    def on_validation_start(self, trainer: Trainer, task: LightningModule) -> None:
        """Notes when it begins."""
        self._read(trainer)
        self._began = self.seconds

    def on_validation_end(self, trainer: Trainer, task: LightningModule) -> None:
        """Notes what it took."""
        self._read(trainer)
        self.validation, self._last = self.seconds - self._began, self.seconds

    def state_dict(self) -> dict[str, Any]:
        """The time so far."""
        return {"seconds": self.seconds, "validation": self.validation, "last": self._last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The time of the checkpoint."""
        self.seconds = self._before = state["seconds"]
        self.validation, self._last = state["validation"], state["last"]


def budget_used(trainer: Trainer) -> float:
    """The part of a training that is over, 0 to 1, whether epochs or minutes limit it."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]  # which Lightning sets from elsewhere
    for clock in (callback for callback in callbacks if isinstance(callback, Minutes)):
        return clock.used
    return min(1.0, trainer.global_step / trainer.estimated_stepping_batches)


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

    def on_train_batch_end(self, trainer: Trainer, task: Any, outputs: Any, batch: Any, batch_index: int) -> None:
        """Moves the bar; the loss is averaged over about 20 steps, patches being so different."""
        loss = float(outputs["loss"])
        self._loss = loss if self._loss is None else 0.95 * self._loss + 0.05 * loss
        rate = (trainer.global_step - self._first) / (self._progress.tasks[self._bar].elapsed or 1e-9)
        dice = f"  Dice {task.dice['dice']:.3f}" if task.dice else ""
        state = f"loss {self._loss:.3f}{dice}  step {trainer.global_step} ({rate:.1f}/s)"
        self._progress.update(self._bar, completed=budget_used(trainer), state=state)

    def on_train_end(self, trainer: Trainer, task: LightningModule) -> None:
        """Leaves the finished bar on the screen."""
        self._progress.stop()

    def on_exception(self, trainer: Trainer, task: LightningModule, exception: BaseException) -> None:
        """Gives the screen back."""
        self._progress.stop()


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint whole or not at all; Lightning's own way leads over the folder for temporary files."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Replaces what is there."""
        content = io.BytesIO()
        torch.save(checkpoint, content)
        with finished_file(path) as unfinished:
            unfinished.write_bytes(content.getbuffer())


class Checkpoint(Callback):
    """All that a training needs to go on, after every epoch; whole or not at all."""

    def __init__(self, path: Path):
        self.path = path

    def on_train_epoch_end(self, trainer: Trainer, task: Any) -> None:
        """Replaces the checkpoint of the epoch before, unless the weights are of no use."""
        if name := not_finite(task.network.state_dict()):
            task.stop(f"the weights {name!r} are not finite")
        trainer.save_checkpoint(self.path)  # all ranks take part, the first one writes

    def on_load_checkpoint(self, trainer: Trainer, task: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuses weights that are of no use."""
        if name := not_finite(checkpoint["state_dict"]):
            raise FileError(self.path, f"its weights {name!r} are not finite; remove it to train from the start")


class Best(Callback):
    """Keeps the weights of the validation with the highest mean Dice."""

    def __init__(self, run: Run):
        self.run, self.dice = run, -1.0

    def on_validation_end(self, trainer: Trainer, task: Any) -> None:
        """Writes the weights if they are the best so far."""
        if task.dice["dice"] <= self.dice:
            return
        self.dice = task.dice["dice"]
        if trainer.is_global_zero:
            self.run.write_network(deepcopy(task.trained), best=True)

    def state_dict(self) -> dict[str, Any]:
        """The highest Dice so far."""
        return {"dice": self.dice}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The highest Dice of the checkpoint."""
        self.dice = state["dice"]


class Epochs(Callback):
    """A row for each epoch in ``metrics.csv``; kept in the checkpoint, so that a resumed training goes on with it."""

    def __init__(self, folder: Path):
        self.path = folder / "metrics.csv"
        self.rows: list[dict[str, Any]] = []
        self._losses: list[torch.Tensor] = []
        self._dice: dict[str, float] = {}

    def on_train_epoch_start(self, trainer: Trainer, task: LightningModule) -> None:
        """Starts the clock and the mean of the loss."""
        self._start, self._losses, self._dice = time.perf_counter(), [], {}

    def on_train_batch_end(
        self, trainer: Trainer, task: LightningModule, outputs: Any, batch: Any, batch_index: int
    ) -> None:
        """Notes the loss of a step."""
        self._losses.append(outputs["loss"].detach())

    def on_validation_end(self, trainer: Trainer, task: Any) -> None:
        """Notes what was found."""
        self._dice = task.dice

    def on_train_epoch_end(self, trainer: Trainer, task: Any) -> None:
        """Writes the file anew with the epoch's row."""
        before = self.rows[-1]["seconds"] if self.rows else 0.0
        row = {
            "epoch": trainer.current_epoch + 1,
            "step": trainer.global_step,
            "seconds": round(before + time.perf_counter() - self._start, 2),
            "learning_rate": trainer.optimizers[0].param_groups[0]["lr"],
            "loss": torch.stack(self._losses).mean().item(),
            **self._dice,
        }
        self.rows.append(row)
        logger.info("  ".join(f"{name} {value:.5g}" for name, value in row.items()))
        if trainer.is_global_zero:
            columns = list(row)[:5] + ["dice", *(f"dice {name}" for name in task.names)]
            write_table(self.path, pd.DataFrame(self.rows, columns=columns))

    def state_dict(self) -> dict[str, Any]:
        """The rows so far."""
        return {"rows": self.rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The rows of the checkpoint."""
        self.rows = state["rows"]
