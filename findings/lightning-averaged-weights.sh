#!/usr/bin/env bash
# Lightning: with averaged weights, test(ckpt_path="best") after fit() tests the weights that are not averaged.
#
# lightning 2.6.6, torch 2.13.0. EMAWeightAveraging averages the weights during training; "after the training finishes,
# the current model parameters will be replaced with the averaged values", and "state_dict" of a checkpoint has the
# averaged ones. One expects that test() and predict() with a checkpoint use them. After fit(), the callback still has
# its average and takes each loading for a continued training: it puts the averaged weights into its own copy, and those
# without averaging into the network. validate() exchanges both and is right; test() and predict() do not. In a new
# Trainer, as in another process, all are right: the same checkpoint has two test losses. For the same reason,
# validate() of another network after fit() has the result of the trained one. There is no warning. WeightAveraging is
# alike. No issue about it was found.
#
# Seen (a 3 x 3 x 3 filter is learnt; loss of the checkpoint of the first epoch, by a loop: 0.68 averaged, 0.061 not):
#   fit(); validate(ckpt_path=...)         0.68
#   fit(); test(ckpt_path=...)             0.061
#   fit(); predict(ckpt_path=...)          0.061
#   new Trainer; test(ckpt_path=...)       0.68
#   fit(); validate(an untrained network)  0.0002, as the trained one (by a loop: 2.2)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6 lightning==2.6.6
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'END'
import logging

import lightning
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from torch.nn.functional import conv3d, mse_loss
from torch.utils.data import DataLoader, TensorDataset

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
torch.manual_seed(0)
volumes = torch.randn(64, 1, 8, 8, 8)
targets = conv3d(volumes, torch.randn(1, 1, 3, 3, 3) / 27**0.5)
data = DataLoader(TensorDataset(volumes, targets), batch_size=8)


class Filter(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Conv3d(1, 1, 3)

    def training_step(self, batch, index):
        return mse_loss(self.layer(batch[0]), batch[1])

    def validation_step(self, batch, index):
        self.log("loss", mse_loss(self.layer(batch[0]), batch[1]))

    test_step = validation_step

    def predict_step(self, batch, index):
        return self.layer(batch[0])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def trainer(*callbacks, **options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return lightning.Trainer(accelerator="cpu", callbacks=list(callbacks), **quiet, **options)


@torch.no_grad()
def loss(state):
    """Of the weights, without Lightning."""
    return mse_loss(conv3d(volumes, state["layer.weight"], state["layer.bias"]), targets).item()


average = EMAWeightAveraging(decay=0.9)
checkpoints = ModelCheckpoint(dirpath=".", filename="{epoch}", save_top_k=-1)
trained, network = trainer(average, checkpoints, max_epochs=6), Filter()
trained.fit(network, data, data)
path = "epoch=0.ckpt"
saved = torch.load(path, weights_only=False)
averaged, plain = loss(saved["state_dict"]), loss(saved["current_model_state"])
print(f"by a loop: averaged {averaged:.4f}, not averaged {plain:.4f}")
final = loss(network.state_dict())
untrained = Filter()
other = trained.validate(untrained, data, verbose=False)[0]["loss"]
print(f"validate(an untrained network): {other:.4f}, by a loop {loss(untrained.state_dict()):.4f}, trained {final:.4f}")
assert abs(other - final) < 1e-4 < 0.5 < loss(untrained.state_dict()), "the behaviour has changed"
options = {"ckpt_path": path, "weights_only": False}
quiet = {"verbose": False, **options}
results = {
    "validate": trained.validate(network, data, **quiet)[0]["loss"],
    "test": trained.test(network, data, **quiet)[0]["loss"],
    "predict": mse_loss(torch.cat(trained.predict(network, data, **options)), targets).item(),
    "new trainer": trainer().test(network, data, **quiet)[0]["loss"],
}
print({name: round(value, 4) for name, value in results.items()})
assert plain < averaged / 3
for name, value in results.items():
    expected = plain if name in ("test", "predict") else averaged
    assert abs(value - expected) < 1e-4 * (1 + expected), "the behaviour has changed"
END
