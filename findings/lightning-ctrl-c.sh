#!/usr/bin/env bash
# Ctrl-C in Lightning during data preparation raises SystemExit, and later Ctrl-C is ignored.
#
# lightning 2.6.6, torch 2.13.0. On SIGINT, Trainer.fit raises SystemExit(1), which neither `except KeyboardInterrupt` nor
# `except Exception` catches. It also sets SIGINT to be ignored. If this happens during a training step, the teardown
# restores the previous handler. During `prepare_data` or `setup`, where a volume data set spends minutes on its cache,
# the handler is never restored: a notebook or program that continues after the SystemExit can no longer be stopped by
# Ctrl-C. Workaround: save signal.getsignal(signal.SIGINT) before, and set it again afterwards.
#
# Seen (what fit raised, the handler of SIGINT afterwards):
#   prepare_data   SystemExit(1)  SIG_IGN
#   setup          SystemExit(1)  SIG_IGN
#   training_step  SystemExit(1)  default_int_handler
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 lightning==2.6.6
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'END'
import signal

import lightning
import torch


class Task(lightning.LightningModule):
    def __init__(self, where):
        super().__init__()
        self.layer, self.where = torch.nn.Linear(1, 1), where

    def press(self, where):
        if where == self.where:
            signal.raise_signal(signal.SIGINT)  # what Ctrl-C does

    def prepare_data(self):
        self.press("prepare_data")

    def setup(self, stage):
        self.press("setup")

    def training_step(self, batch, index):
        self.press("training_step")
        return self.layer(batch[0]).sum()

    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(4, 1)))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


for where, deaf in dict(prepare_data=True, setup=True, training_step=False).items():
    signal.signal(signal.SIGINT, signal.default_int_handler)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = lightning.Trainer(max_epochs=1, accelerator="cpu", **quiet)
    try:
        trainer.fit(Task(where))
        answer = None
    except BaseException as error:
        answer = error
    handler = signal.getsignal(signal.SIGINT)
    print(where, repr(answer), handler)
    assert isinstance(answer, SystemExit), "the behaviour has changed"
    assert handler == (signal.SIG_IGN if deaf else signal.default_int_handler), "the behaviour has changed"
END
