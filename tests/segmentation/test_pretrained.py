"""Pretrained weights: all that fit are loaded from any kind of checkpoint; other files raise an error."""

import pytest
import torch
from safetensors.torch import save_file

from attn3d.segmentation import FileError, Run, create_network, train
from attn3d.segmentation.pretrained import start_from
from tests.segmentation.runs import SMALL

SHAPE = {"in_channels": 1, "width": 4, "strides": ((2, 2, 2), (2, 2, 2))}


def network(classes=2, **options):
    torch.manual_seed(classes)
    return create_network("UNet", out_channels=classes, **SHAPE, **options)


WRAPPED = {
    "plain": lambda state: state,
    "lightning": lambda state: {"state_dict": {f"network.{name}": value for name, value in state.items()}, "epoch": 3},
    "compiled in lightning": lambda state: {
        "state_dict": {f"model._orig_mod.{name}": value for name, value in state.items()}
        | {"loss.weight": torch.ones(2), "average.module.x": torch.ones(1)}
    },
    "nnunet": lambda state: {"network_weights": {f"module.{name}": value for name, value in state.items()}},
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_all_weights_are_loaded_from_each_kind_of_checkpoint(wrap, tmp_path):
    source, net = network(), network()
    for value in source.parameters():
        torch.nn.init.normal_(value)
    torch.save(wrap(source.state_dict()), tmp_path / "weights.pt")
    start_from(net, tmp_path / "weights.pt")
    assert all(torch.equal(net.state_dict()[name], value) for name, value in source.state_dict().items())


def test_new_layers_keep_their_weights(tmp_path):
    """New layers are attention, and the output layer with more classes."""
    source, net = network(2), network(3, attention="se", at=("encoder",))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    save_file({name: value + 1 for name, value in source.state_dict().items()}, tmp_path / "weights.safetensors")
    says = start_from(net, tmp_path / "weights.safetensors")
    shapes = {name: value.shape for name, value in source.state_dict().items()}
    fitting = {name for name, value in before.items() if shapes.get(name) == value.shape}
    for name, value in net.state_dict().items():
        assert torch.equal(value, source.state_dict()[name] + 1 if name in fitting else before[name]), name
    assert 0 < len(fitting) < len(shapes)
    assert f"{len(fitting)} of {len(before)} weights start from" in says


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file"),
        (b"text", "is damaged, or is not a checkpoint"),
        ({"epoch": 3}, "contains no weights by name"),
        (3, "contains no weights by name"),
        ({"other": torch.ones(2)}, "none of its weights has the name and shape .*'other'"),
    ],
)
def test_invalid_checkpoints_are_refused(content, message, tmp_path):
    file = tmp_path / "weights.pt"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        torch.save(content, file)
    with pytest.raises(FileError, match=f"weights.pt: {message}"):
        start_from(network(), file)


def test_a_run_starts_from_another(data, tmp_path):
    """With a negligible learning rate, it ends with the weights of the other run."""
    first = train(data, out=tmp_path / "first", **SMALL | {"epochs": 1})
    still = {"epochs": 1, "learning_rate": 1e-12, "start_from": first.folder, "seed": 5}
    second = train(data, out=tmp_path / "second", **SMALL | still)
    assert second.config.start_from == first.folder
    expected, found = first.network().state_dict(), second.network().state_dict()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=1e-6)
    assert Run.open(second.folder).config == second.config
    with pytest.raises(FileError, match=r"config\.json: does not exist"):
        train(data, out=tmp_path / "third", **SMALL | {"start_from": str(tmp_path)})
    assert not (tmp_path / "third").exists()
