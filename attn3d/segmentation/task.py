"""The Lightning module of a training: the network, its loss and its optimizer."""

from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np
import torch
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from monai.losses import DeepSupervisionLoss
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from attn3d.layers.spatial import to_channels_last
from attn3d.segmentation.callbacks import budget_used
from attn3d.segmentation.losses import create_loss
from attn3d.segmentation.networks import shape_multiple
from attn3d.segmentation.portable import WindowInferer
from attn3d.segmentation.settings import Configuration


class Diverged(ValueError):
    """The loss, the output or weights are not finite. The message says in which epoch, and what to do."""


class SegmentationTask(LightningModule):
    """Trains a network. The learning rate rises over the warm-up and decays to zero over the budget.

    Training batches have an ``"image"`` (B, C, *S), a ``"label"`` (B, 1, *S) of label values and the ``"name"`` of
    each case. Validation batches are whole volumes: an image (1, C, *S), its label (*S) and the name. The Dice is
    that of all volumes pooled as one, without ignored voxels.

    With ``ema_decay``, a moving average of the weights is validated and saved. Its decay starts with the small values
    (1 + step) / (10 + step), so that the first weights are soon forgotten.

    Args:
        network: (B, C, *S) to logits (B, channels, *S), or in training to several, the finest first (as a list, or
            stacked as by DynUNet). The weight of each coarser one is half that of the one before, at least 1/16.
        config: the configuration of the run.
    """

    def __init__(self, network: nn.Module, config: Configuration):
        super().__init__()
        self.config, self.names = config, config.labels.names
        self.network = to_channels_last(network) if config.channels_last else network
        self.average = None
        if config.ema_decay:
            self.average = AveragedModel(self.network).requires_grad_(False)
        self.loss = DeepSupervisionLoss(create_loss(config.loss, config.labels, config.class_weights))
        self.dice: dict[str, float] = {}  # of the last validation

    @property
    def trained(self) -> nn.Module:
        """The network with the weights to save."""
        return self.network if self.average is None else self.average.module

    def on_train_epoch_start(self) -> None:
        """Sets the seed of an epoch, for example for dropout, so that a resumed training draws the same values."""
        place = [self.config.seed, self.trainer.current_epoch, self.trainer.global_rank]
        torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1)[0]))

    def training_step(self, batch: dict[str, Any], batch_index: int) -> Tensor:
        """The loss of one batch of patches."""
        image = to_channels_last(batch["image"]) if self.config.channels_last else batch["image"]
        outputs = self.network(image)
        if isinstance(outputs, Tensor):
            outputs = [outputs] if outputs.dim() == image.dim() else list(outputs.unbind(1))
        loss = self.loss(outputs, batch["label"])
        if not loss.isfinite():
            self.stop(f"the loss is {loss.item()}", batch.get("name", ()))
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_index: int) -> None:
        """Adds the new weights to the moving average."""
        if self.average is not None:
            step = self.trainer.global_step
            decay = min(self.config.ema_decay, (1 + step) / (10 + step))
            self.average.multi_avg_fn = get_ema_multi_avg_fn(decay)
            self.average.update_parameters(self.network)

    def stop(self, problem: str, cases: Sequence[str] = ()) -> NoReturn:
        """Ends a training that cannot be continued: raises `Diverged`."""
        where = f", or check the voxels of {', '.join(sorted(set(cases)))}" if cases else ""
        raise Diverged(
            f"{problem} in epoch {self.trainer.current_epoch + 1}; train again with a `learning_rate` below "
            f"{self.config.learning_rate:g}{where}"
        )

    def on_validation_epoch_start(self) -> None:
        """Resets the counts of voxels."""
        self._counts = torch.zeros(len(self.names), 2, dtype=torch.float64)

    def validation_step(self, batch: dict[str, Any], batch_index: int) -> None:
        """Counts the predicted, the true and the common voxels of a volume. An empty batch is skipped."""
        if not batch:
            return
        config, labels = self.config, self.config.labels
        infer = WindowInferer(config.patch_size, shape_multiple(config.network, config.strides), overlap=0.25)
        logits = infer(batch["image"], self.trained, device="cpu")
        if not logits.isfinite().all():
            self.stop("the network's output is not finite", [batch["name"]])
        chosen = labels.choose(labels.probabilities(logits[0]))
        found, true = labels.compared(chosen.numpy(), batch["label"].cpu().numpy())
        masks = zip(labels.masks(found), labels.masks(true), strict=True)
        for index, ((_, one), (_, other)) in enumerate(masks):
            self._counts[index] += torch.tensor([(one & other).sum() * 2, one.sum() + other.sum()])

    def on_validation_epoch_end(self) -> None:
        """Logs Dice for each class, and their mean, over the volumes of all ranks."""
        counts = self.trainer.strategy.reduce(self._counts.to(self.device, torch.float32), reduce_op="sum").cpu()
        dice = torch.where(counts[:, 1] > 0, counts[:, 0] / counts[:, 1].clamp(min=1), 1.0)
        self.dice = {"dice": dice.mean().item()}
        self.dice |= {f"dice {name}": value for name, value in zip(self.names, dice.tolist(), strict=True)}
        self.log_dict(self.dice)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Returns the optimizer of the settings, with warm-up and polynomial decay over the budget."""
        config, parameters = self.config, self.network.parameters()
        optimizer: torch.optim.Optimizer
        if config.optimizer == "sgd":
            optimizer = torch.optim.SGD(
                parameters, config.learning_rate, momentum=0.99, nesterov=True, weight_decay=config.weight_decay
            )
        else:
            optimizer = torch.optim.AdamW(parameters, config.learning_rate, weight_decay=config.weight_decay)

        def factor(step: int) -> float:
            risen = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
            return risen * (1 - budget_used(self.trainer)) ** 0.9

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
