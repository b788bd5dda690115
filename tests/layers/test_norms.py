"""Norms by spec, down to a single value per channel."""

import pytest
import torch
from torch import nn

from attn3d import NonLocal
from attn3d.layers.norms import BatchNorm, GroupNorm, InstanceNorm, LayerNorm, create_norm, is_instance_norm

SHAPES = [(2, 6), (2, 6, 5), (3, 6, 4, 3), (2, 6, 3, 4, 2)]
SPECS = ["batch", ("group", {"num_groups": 3}), "instance", "layer", None]


def randomised(norm: nn.Module) -> nn.Module:
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    return norm.double()


@pytest.mark.parametrize("shape", SHAPES[1:], ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_is_pytorchs(shape, training):
    theirs_of = {3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[len(shape)]
    ours, theirs = randomised(BatchNorm(6)), theirs_of(6).double()
    theirs.load_state_dict(ours.state_dict())
    for _ in range(2):
        x = torch.randn(shape, dtype=torch.float64)
        torch.testing.assert_close(ours.train(training)(x), theirs.train(training)(x))
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_other_norms_are_pytorchs(shape):
    x = torch.randn(shape, dtype=torch.float64)
    group = randomised(GroupNorm(6, num_groups=3))
    torch.testing.assert_close(group(x), nn.functional.group_norm(x, 3, group.weight, group.bias))
    layer = randomised(LayerNorm(6))
    last = nn.functional.layer_norm(x.movedim(1, -1), (6,), layer.weight, layer.bias)
    torch.testing.assert_close(layer(x), last.movedim(-1, 1))
    if len(shape) > 2:
        instance = randomised(InstanceNorm(6))
        theirs = nn.functional.instance_norm(x, weight=instance.weight, bias=instance.bias)
        torch.testing.assert_close(instance(x), theirs)


def test_one_value_per_channel_uses_running_statistics_without_updating_them():
    norm = randomised(BatchNorm(6))
    norm.running_mean.normal_()
    before = {key: value.clone() for key, value in norm.state_dict().items()}
    x = torch.randn(1, 6, 1, 1, 1, dtype=torch.float64)
    torch.testing.assert_close(norm.train()(x), norm.eval()(x))
    torch.testing.assert_close(norm.state_dict(), before)


@pytest.mark.parametrize("spec", ["instance", ("group", {"num_groups": 6})])
def test_one_value_per_group_gives_the_bias(spec):
    norm = randomised(create_norm(spec, 6))
    x = torch.randn(1, 6, 1, 1, 1, dtype=torch.float64)
    torch.testing.assert_close(norm.train()(x).flatten(), norm.bias.detach())


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("batch", [0, 1])
def test_small_batches(spec, batch):
    norm = create_norm(spec, 6).train()
    x = torch.randn(batch, 6, 1, 1, 1, requires_grad=True)
    y = norm(x)
    y.sum().backward()
    assert y.shape == x.shape
    assert torch.isfinite(x.grad).all()
    assert all(torch.isfinite(value).all() for value in norm.state_dict().values())


def test_batch_norm_is_an_instance_of_pytorchs():
    assert isinstance(nn.SyncBatchNorm.convert_sync_batchnorm(BatchNorm(6)), nn.SyncBatchNorm)


def test_specs_are_read_as_monai_reads_them():
    assert isinstance(create_norm("BATCH", 6), BatchNorm)
    assert isinstance(create_norm(None, 6), nn.Identity)
    assert create_norm(("batch", {"eps": 0.1, "affine": False}), 6).weight is None


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("bach", ValueError, "`norm` got 'bach'; did you mean 'batch'"),
        (("group", {"num_groups": 4}), ValueError, "`num_groups` must divide 6 channels, got 4"),
        (("group", {"num_groups": 0}), ValueError, "`num_groups` must be at least 1, got 0"),
        (("group", {"num_groups": 3.0}), TypeError, "`num_groups` must be an integer, got 3.0"),
        (("batch", {"epsilon": 1}), TypeError, "`norm` 'batch' has no option `epsilon`; did you mean 'eps'"),
        (("batch", {"eps": "1e-5"}), TypeError, "`eps` must be a finite number of at least 0, got '1e-5'"),  # of YAML
        (("group", {"num_groups": 2, "eps": -1.0}), ValueError, "`eps` must be a finite number of at least 0, got -1"),
        (("batch", {"momentum": "0.1"}), TypeError, "`momentum` must be a finite number of at least 0, got '0.1'"),
        (("layer", {"affine": "no"}), TypeError, "`affine` must be True or False, got 'no'"),
        (("instance", {"affine": 1}), TypeError, "`affine` must be True or False, got 1"),
        ("group", TypeError, "`norm` 'group' needs the option `num_groups`"),
        (("group", {"num_groups": 4}), ValueError, r"must divide 6 channels, got 4; \[1, 2, 3, 6\] do"),
        (5, TypeError, "`norm` must be a name"),
    ],
)
def test_refusals(spec, error, message):
    with pytest.raises(error, match=message):
        create_norm(spec, 6)


def test_a_momentum_of_none_is_the_cumulative_mean():
    torch.manual_seed(0)
    ours, plain = BatchNorm(3, momentum=None), torch.nn.BatchNorm3d(3, momentum=None)
    for _ in range(3):
        x = torch.randn(2, 3, 4, 4, 4)
        torch.testing.assert_close(ours(x), plain(x))
    torch.testing.assert_close(ours.running_mean, plain.running_mean)
    torch.testing.assert_close(ours.running_var, plain.running_var)


def test_the_cumulative_mean_compiles_to_one_graph_for_all_batches():
    ours, compiled = BatchNorm(3, momentum=None), BatchNorm(3, momentum=None)
    run = torch.compile(compiled, fullgraph=True, backend="eager")
    for _ in range(3):
        x = torch.randn(2, 3, 4, 4, 4)
        torch.testing.assert_close(run(x), ours(x))
    torch.testing.assert_close(compiled.state_dict(), ours.state_dict())


def test_a_group_for_every_channel_is_an_instance_norm():
    found = [is_instance_norm(norm) for norm in (nn.GroupNorm(4, 4), nn.InstanceNorm3d(4), InstanceNorm(4))]
    assert found == [True, True, True]
    assert [is_instance_norm(norm) for norm in (nn.GroupNorm(2, 4), nn.BatchNorm3d(4))] == [False, False]


@pytest.mark.parametrize("spec", [spec for spec in SPECS if spec is not None], ids=str)
def test_channels_last_with_a_large_mean(spec):
    """Output and gradient are as precise as in the other memory format."""
    norm = create_norm(spec, 6)
    x, upstream = torch.randn(2, 2, 6, 4, 3, 5, generator=torch.Generator().manual_seed(0))
    x, results = x + 1000, []
    for given in (x.double(), x.to(memory_format=torch.channels_last_3d)):
        y = norm.to(given.dtype)(given.requires_grad_())
        results.append([y, *torch.autograd.grad(y, given, upstream.to(y.dtype))])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-2)


@pytest.mark.parametrize("norm", ["batch", "layer", "instance", ("group", {"num_groups": 2})], ids=str)
def test_norms_of_tokens_in_a_vmap(norm):
    """Tokens of a volume are channels-last."""
    module = NonLocal(2, 4, mode="dot_product", norm=norm).eval()
    x = torch.randn(3, 2, 4, 3, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(torch.func.vmap(module)(x), torch.stack([module(one) for one in x]))
