"""Key masks in every mechanism, pattern and backend, against loops over the voxels that they keep."""

from __future__ import annotations

import copy
import functools

import onnxruntime
import pytest
import torch
from monai.data import MetaTensor

import attn3d
from attn3d import Axial, Global, Grid, Neighborhood, PooledKeys, Window
from tests.attention.layers import HEADS, Scoped, assert_results, build, results, tokens
from tests.configurations import randomise
from tests.mechanisms.cases import CASES
from tests.mechanisms.parity import assert_close, assert_gradients_close, volume
from tests.references.attention import attend, entries, keys_seen, steps

SHAPE = (4, 5)
PATTERNS = [
    Scoped(Global()),
    Scoped(PooledKeys(2)),
    Scoped(Window(3, shift=True), "joint"),
    Scoped(Grid(2), "axis"),
    Scoped(Axial()),
    Scoped(Neighborhood(3, dilation=2)),
]
BACKENDS = ["auto", "chunked", "math", "captured"]
MODES = ["embedded_gaussian", "gaussian", "dot_product", "concatenation"]


@functools.cache
def masks():
    """Holes and padding; the second volume keeps one voxel, the third none."""
    mask = torch.ones(3, *SHAPE, dtype=torch.bool)
    mask[0, 1, 2:4] = mask[0, :, 4] = mask[0, 0, 0] = False
    mask[1:] = False
    mask[1, 2, 1] = True
    return mask


def place(voxel):
    return voxel[0] * SHAPE[1] + voxel[1]


def loops(scoped, q, k, v, mask, table):
    """All pairs, with a bias of -inf for keys that are not seen; pooled keys are means of the voxels in the mask."""
    rule, seen = scoped.rule(2), mask.flatten(1)
    voxels = [(z, y) for z in range(SHAPE[0]) for y in range(SHAPE[1])]
    if rule.name == "pooled_keys":
        blocks = sorted({(z // 2, y // 2) for z, y in voxels})
        pooled, left = [[], []], []
        for block in blocks:
            members = [place(voxel) for voxel in voxels if (voxel[0] // 2, voxel[1] // 2) == block]
            count = seen[:, members].sum(1)
            left.append(count > 0)
            for means, x in zip(pooled, (k, v), strict=True):
                total = (x[:, :, members] * seen[:, None, members, None]).sum(2)
                means.append(total / count.clamp(min=1)[:, None, None])
        k, v = (torch.stack(means, 2) for means in pooled)
        return attend(q, k, v, key_mask=torch.stack(left, 1))[0]
    bias = torch.full((1, HEADS, 20, 20), -torch.inf, dtype=torch.float64)
    for voxel in voxels:
        for key in keys_seen(rule, voxel, SHAPE):
            value = 0.0
            if table is not None:
                found = entries(rule, scoped.position_bias, steps(rule, voxel, key, SHAPE))
                value = table[:, list(found)].sum(1)
            bias[0, :, place(voxel), place(key)] = value
    return attend(q, k, v, key_mask=seen, bias=bias)[0]


@functools.cache
def leaves():
    return [torch.cat([leaf, leaf[:1]]).detach().requires_grad_() for leaf in tokens(SHAPE)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scoped", PATTERNS, ids=str)
def test_equals_the_loops(scoped, backend):
    layer = build(scoped, 2, backend)
    table = layer.position_table
    found = results(layer(*leaves(), list(SHAPE), masks().flatten(1)), leaves(), table)
    assert_results(found, results(loops(scoped, *leaves(), masks(), table), leaves(), table))
    assert (found["output"][2] == 0).all()
    assert (found["k"][~masks().flatten(1)[:, None].expand(-1, HEADS, -1)] == 0).all()


@pytest.mark.parametrize("scoped", PATTERNS, ids=str)
def test_groups_a_few_at_a_time_and_dropout(scoped, monkeypatch):
    """Tiles within groups drop the same weights as the plain form."""
    monkeypatch.setattr("attn3d.attention.grouped.TILE_BYTES", 600)
    found = []
    for backend in ("math", "chunked"):
        layer = scoped.layer(2, backend=backend, dropout=0.4)
        torch.manual_seed(2)
        found.append(results(layer(*leaves(), list(SHAPE), masks().flatten(1)), leaves(), layer.position_table))
    assert_results(found[1], found[0])


def test_sdpa_does_not_support_it_within_groups():
    with pytest.raises(ValueError, match="`backend` 'sdpa' does not support a key mask within groups on this device"):
        build(PATTERNS[2]._replace(position_bias=None), 2, "sdpa")(*leaves(), list(SHAPE), masks().flatten(1))


def padded(x, sizes):
    """x padded with 7s to a larger volume, the mask of its voxels, and their indices."""
    larger = torch.full((*x.shape[:2], *sizes), 7.0, dtype=x.dtype)
    inside = (slice(None), slice(None), *(slice(0, size) for size in x.shape[2:]))
    larger[inside] = x
    mask = torch.zeros(len(x), *sizes, dtype=torch.bool)
    mask[(inside[0], *inside[2:])] = True
    return larger, mask, inside


PADDED = [
    ("mhsa", {"num_heads": 2}),
    ("mhsa", {"num_heads": 2, "position": "rope", "qk_norm": True, "registers": 2}),
    ("mhsa", {"num_heads": 2, "pattern": ("pooled_keys", {"stride": (2, 2)})}),
    ("mhsa", {"num_heads": 2, "pattern": ("window", {"size": (2, 4)}), "position_bias": "joint"}),
    ("mhsa", {"num_heads": 2, "pattern": "axial"}),
    ("channel", {"num_heads": 2}),
    ("paired", {"num_heads": 2, "pattern": ("pooled_keys", {"stride": 2})}),
    ("non_local", {"norm": "layer"}),
    ("non_local", {"norm": None, "mode": "gaussian", "pattern": ("window", {"size": 2})}),
    ("non_local", {"norm": None, "mode": "dot_product"}),
    ("non_local", {"norm": None, "mode": "concatenation"}),
    ("non_local", {"norm": None, "mode": "dot_product", "pattern": ("pooled_keys", {"stride": 2})}),
]


@pytest.mark.parametrize(("name", "options"), PADDED, ids=str)
def test_padding_changes_nothing(name, options):
    """Output and gradients are those of the volume without padding."""
    module = randomise(attn3d.create_attention(name, spatial_dims=2, channels=8, **options).double())
    x = volume(2, 8, 4, 4).requires_grad_()
    larger, mask, inside = padded(x, (6, 7))
    found, expected = module(larger, mask)[inside], module(x)
    assert_close(found, expected)
    inputs = [x, *module.parameters()]
    assert_gradients_close(found, inputs, expected, inputs, ["x", *dict(module.named_parameters())])


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_leaves_holes_out(mode):
    """Against the loops on a volume that has only the voxels of the mask."""
    x, kept = volume(1, 4, 9), torch.tensor([0, 2, 3, 5, 8])
    mask = torch.zeros(1, 9, dtype=torch.bool).index_fill(1, kept, True)
    module = randomise(attn3d.NonLocal(1, 4, mode=mode, norm=None).double())
    copies = [parameter.detach() for parameter in module.parameters()]
    expected = CASES["non_local"].reference(x[..., kept], copies, [], True, mode=mode, norm=None)
    assert_close(module(x, mask)[..., kept], expected)


@pytest.mark.parametrize("mode", ["dot_product", "concatenation"])
def test_the_mean_over_keys_is_that_of_each_sample(mode):
    """Samples of a batch have different numbers of keys; without any key, only the residual is left."""
    module = randomise(attn3d.NonLocal(1, 4, mode=mode, norm=None).double())
    x, mask = volume(3, 4, 9), torch.arange(9) < torch.tensor([3, 7, 0])[:, None]
    found = module(x, mask)
    for sample in range(2):
        assert_close(found[sample, None], module(x[sample, None], mask[sample, None]))
    with torch.no_grad():
        module.value.weight.zero_()
        module.value.bias.zero_()
    assert_close(found[2], module(x)[2])


@pytest.mark.parametrize("mode", ["dot_product", "concatenation"])
def test_the_mean_over_one_of_many_keys_is_finite_in_half_precision(mode):
    """Scaled by the number of voxels, its value would overflow."""
    module = randomise(attn3d.NonLocal(1, 4, mode=mode, norm=None)).half()
    x, mask = torch.randn(1, 4, 2**17).half(), torch.arange(2**17)[None] == 3
    expected = copy.deepcopy(module).double()
    torch.testing.assert_close(module(x, mask).double(), expected(x.double(), mask), rtol=1e-2, atol=1e-2)
    rows, truth = (one.attention_weights(y, key_mask=mask)["query"] for one, y in ((module, x), (expected, x.double())))
    torch.testing.assert_close(rows.double(), truth, rtol=1e-2, atol=1e-2)


def test_pooled_keys_are_rounded_once():
    """The mean over a block in which one voxel may be seen is this voxel, although its share is small."""
    x, mask = torch.randn(1, 1, 16**3, 8).half() * 2e-3, torch.arange(16**3)[None] == 77
    (pooled,), _, _ = PooledKeys(16).pool((x,), [16] * 3, mask)
    assert torch.equal(pooled, x[:, :, 77:78])


@pytest.mark.parametrize(
    ("name", "options"),
    [("channel", {})]
    + [
        (name, {"pattern": one})
        for name in ("mhsa", "non_local", "paired")
        for one in (Global(), PooledKeys(2), Axial())
    ],
    ids=str,
)
def test_the_metadata_are_those_of_the_volume(name, options):
    """MONAI's masks are MetaTensors too, with metadata of their own."""
    module = attn3d.create_attention(name, spatial_dims=2, channels=4, **options).eval()
    x, mask = volume(3, 4, *SHAPE).float(), MetaTensor(masks(), meta={"name": "mask"})
    found = module(MetaTensor(x, affine=2 * torch.eye(4), meta={"name": "volume"}), mask)
    assert found.meta["name"] == "volume"
    assert torch.equal(found.affine.float(), 2 * torch.eye(4))
    assert type(module(x, mask)) is torch.Tensor
    assert torch.equal(found.as_tensor(), module(x, masks()))


@pytest.mark.parametrize("pattern", [Global(), PooledKeys(2), Window(3), Axial()], ids=str)
def test_attention_weights_leave_masked_keys_out(pattern):
    module = randomise(attn3d.MultiHeadSelfAttention(2, 4, num_heads=2, pattern=pattern).double())
    rows = module.attention_weights(volume(3, 4, *SHAPE), torch.tensor([11]), masks())["query"]
    assert_close(rows[1].sum((2, 3)), torch.ones(2, 1, dtype=torch.float64))
    assert (rows[2] == 0).all()
    if pattern != PooledKeys(2):
        assert (rows[:2] > 0)[~masks()[:2, None, None].expand(-1, 2, 1, -1, -1)].sum() == 0


@pytest.mark.parametrize("mode", MODES)
def test_attention_weights_of_every_mode_are_those_of_the_voxels_in_the_mask(mode):
    """Rows and output are those of a volume that has only these voxels. Without any, the rows are 0."""
    x, kept = volume(1, 4, 9), torch.tensor([0, 2, 3, 5, 8])
    mask = torch.zeros(2, 9, dtype=torch.bool)
    mask[0, kept] = True
    module = randomise(attn3d.NonLocal(1, 4, mode=mode, norm=None).double())
    rows = module.attention_weights(x.expand(2, -1, -1), kept[[1, 4]], mask)["query"]
    expected = module.attention_weights(x[..., kept], torch.tensor([1, 4]))["query"]
    assert_close(rows[:1, ..., kept], expected)
    assert (rows.squeeze(1).mT[~mask] == 0).all()
    values = module.value(x.transpose(1, 2))
    assert_close(x[..., kept[[1, 4]]] + module.out(rows[0] @ values).mT, module(x, mask[:1])[..., kept[[1, 4]]])


@pytest.mark.parametrize("mode", MODES)
def test_attention_weights_of_every_mode_are_over_the_means_in_the_mask(mode):
    """A block without a voxel in the mask has the weight 0; the others have the means of their voxels in it."""
    x, pattern = volume(3, 4, *SHAPE), PooledKeys(2)
    module = randomise(attn3d.NonLocal(2, 4, mode=mode, norm=None, pattern=pattern).double())
    rows = module.attention_weights(x, torch.tensor([11]), masks())["query"]
    assert rows.shape == (3, 1, 1, 2, 3)
    values = module.value(x.flatten(2).mT)
    (means,), _, seen = pattern.pool((values.unsqueeze(1),), list(SHAPE), masks().flatten(1))
    assert (rows.flatten(3)[~seen[:, None, None]] == 0).all()
    y = module.out(rows.flatten(3) @ means).squeeze(1).mT
    assert_close(x.flatten(2)[..., 11:12] + y, module(x, masks()).flatten(2)[..., 11:12])


@pytest.mark.parametrize("name", ["mhsa", "non_local"])
def test_an_invalid_key_mask_is_named(name):
    module, x = attn3d.create_attention(name, spatial_dims=2, channels=4), torch.randn(2, 4, 3, 5)
    with pytest.raises(TypeError, match=r"`key_mask` must be boolean, .*, got torch\.float32"):
        module(x, torch.ones(2, 3, 5))
    with pytest.raises(ValueError, match=r"`key_mask` must be \(B, \*S\) = \(2, 3, 5\), got \(2, 1, 3, 5\)"):
        module(x, torch.ones(2, 1, 3, 5, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"`key_mask` must be \(B, \*S\) = \(2, 3, 5\), got \(2, 5, 3\)"):
        module(x, torch.ones(2, 5, 3, dtype=torch.bool))
    with pytest.raises(TypeError, match=r"`key_mask` must be a torch\.Tensor, got list"):
        module(x, [[True]])


def test_sub_sample_does_not_take_a_key_mask():
    module = attn3d.NonLocal(2, 4, sub_sample=True)
    x, mask = torch.randn(1, 4, 3, 5), torch.ones(1, 3, 5, dtype=torch.bool)
    for use in (module, module.attention_weights):
        with pytest.raises(ValueError, match=r"`key_mask` must be None with `sub_sample`"):
            use(x, key_mask=mask)


CAPTURED = [("mhsa", {"pattern": pattern}) for pattern in (Axial(), Global(), PooledKeys(2), Window(3, shift=True))]
CAPTURED += [("non_local", {"norm": None, "mode": mode}) for mode in ("dot_product", "concatenation")]


@pytest.mark.scorecard("captures")
@pytest.mark.parametrize("module", CAPTURED, ids=str)
def test_a_trace_holds_for_other_sizes(module):
    net = randomise(attn3d.create_attention(module[0], spatial_dims=2, channels=4, **module[1]).double()).eval()
    traced = torch.jit.trace(net, (volume(3, 4, *SHAPE), masks()))
    for shape in ((3, 4, 4, 5), (2, 4, 7, 6)):
        x, mask = volume(*shape, seed=3), volume(shape[0], *shape[2:], seed=4) > 0
        mask[0] = False
        assert_close(traced(x, mask), net(x, mask), 1e-12)


@pytest.mark.nightly
@pytest.mark.scorecard("captures")
@pytest.mark.parametrize("module", CAPTURED, ids=str)
def test_exports_and_compiled_graphs_hold_for_other_sizes(module):
    net = randomise(attn3d.create_attention(module[0], spatial_dims=2, channels=4, **module[1])).eval()
    example = (volume(3, 4, 6, 8).float(), volume(3, 6, 8) > 0)
    axes = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    dynamic = (axes, {axis - (axis > 0): size for axis, size in axes.items()})
    program = torch.export.export(net, example, dynamic_shapes=dynamic).module()
    compiled = torch.compile(net, backend="aot_eager", dynamic=True, fullgraph=True)
    model = torch.onnx.export(
        net, example, dynamo=True, verbose=False, input_names=["x", "mask"], dynamic_shapes=dynamic
    )
    session = onnxruntime.InferenceSession(model.model_proto.SerializeToString())
    x, mask = volume(2, 4, 7, 9, seed=3).float(), volume(2, 7, 9, seed=4) > 0
    mask[0] = False
    for captured in (program, compiled):
        torch.testing.assert_close(captured(x, mask), net(x, mask), rtol=1e-4, atol=1e-5)
    (found,) = session.run(None, {"x": x.numpy(), "mask": mask.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), net(x, mask), rtol=1e-4, atol=1e-5)
