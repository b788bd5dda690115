import itertools

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.networks.nets import UNet

import attn3d
from attn3d.plotting import plot_attention_maps
from tests.configurations import OF_ONE_MAP
from tests.segmentation.volumes import AFFINES

GRID = (12, 10, 8)


def maps_of(**weights):
    return {"encoder:model.0": {name: torch.as_tensor(value)[None] for name, value in weights.items()}}


def ramp(grid=GRID):
    """A volume with a different value at every voxel."""
    return torch.arange(np.prod(grid), dtype=torch.float32).reshape(grid)


def cells(figure):
    """The axes of the grid, by rows. Only axes of the first row have titles."""
    columns = sum(axes.get_title() != "" for axes in figure.axes) + 1
    grid = [axes for axes in figure.axes if axes.get_position().width > 0.01]
    return [grid[start : start + columns] for start in range(0, len(grid), columns)]


def heat(axes):
    return np.asarray(axes.images[1].get_array())


@pytest.mark.parametrize("name", AFFINES)
def test_heat_lies_over_the_anatomy_in_every_orientation(name):
    affine = AFFINES[name]
    maps = maps_of(spatial=ramp())
    figure = plot_attention_maps(ramp(), maps, affine, planes=("axial", "coronal", "sagittal"))
    for row, letters in zip(cells(figure), ("RLPA", "RLIS", "APIS"), strict=True):
        np.testing.assert_array_equal(heat(row[1]), row[0].images[0].get_array())
        assert [text.get_text() for text in row[1].texts] == list(letters)
        assert row[1].images[1].get_extent() == row[0].images[0].get_extent()
        assert row[1].get_aspect() == 1
    assert len({heat(row[1]).min() for row in cells(figure)}) == 3


def test_planes_show_the_chosen_voxel_with_a_cross():
    affine = AFFINES["LAS, 5 mm slices"]
    rows = torch.stack([ramp(), 5 * ramp()])[None].repeat(2, 1, 1, 1, 1)  # two heads
    voxels = [(3, 4, 1), (9, 2, 6)]
    figure = plot_attention_maps(ramp(), maps_of(query=rows), affine, voxels=voxels)
    for row, voxel, factor in zip(cells(figure), voxels, (1, 5), strict=True):
        np.testing.assert_array_equal(heat(row[1]), factor * ramp()[:, :, voxel[2]].T)
        for axes in row:
            x, y = axes.lines[0].get_data()
            assert (x, y) == (voxel[0] + 0.5, voxel[1] + 0.5)
        place = nib.affines.apply_affine(affine, voxel)
        assert f"z = {place[2]:.0f} mm" in row[0].get_ylabel()


def test_channels_are_bars_from_zero_in_their_order():
    gates = torch.tensor([0.2, 0.9, 0.5])
    figure = plot_attention_maps(ramp(), maps_of(channel=gates))
    ((_, axes),) = cells(figure)
    (bars,) = axes.patches
    np.testing.assert_allclose(bars.get_data().values, gates)
    assert bars.get_data().baseline == 0
    assert axes.get_ylim() == (0, 1)
    assert "0.2 to 0.9" in axes.get_xlabel()


def test_curves_run_from_left_posterior_and_inferior_in_millimetres():
    affine = AFFINES["LAS, 5 mm slices"]
    gates = {f"axis{axis}": torch.linspace(0, 1, size) for axis, size in enumerate(GRID)}
    figure = plot_attention_maps(ramp(), maps_of(axes_map=ramp(), **gates), affine)
    x, y, z = cells(figure)[1][1].lines
    np.testing.assert_allclose(x.get_ydata(), torch.linspace(1, 0, 12), err_msg="stored from right to left")
    np.testing.assert_allclose(z.get_ydata(), torch.linspace(0, 1, 8))
    np.testing.assert_allclose(z.get_xdata(), 5 * (np.arange(8) + 0.5))
    assert [line.get_label() for line in (x, y, z)] == [
        "left to right", "posterior to anterior", "inferior to superior",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "spatial_dims"),
    [*((name, 3) for name in OF_ONE_MAP), ("cbam", 2), ("coord", 2), ("danet", 2)],
)
def test_maps_of_every_mechanism_can_be_drawn(name, spatial_dims, tmp_path):
    torch.manual_seed(0)
    net = UNet(spatial_dims, 1, 2, (8, 8), (2,))
    attn3d.insert_attention(net, name, at="encoder")
    x = torch.randn(1, 1, *(16, 12, 10)[:spatial_dims])
    maps = attn3d.attention_maps(net, x)
    figure = plot_attention_maps(x, maps)
    assert figure.axes[1].get_title() == "encoder:model.0"
    charts = {"channel", "added", "branch", "axis0", "affinity"} & maps["encoder:model.0"].keys()
    volumes = {"channel_map", "spatial", "gate", "axes_map", "query"} & maps["encoder:model.0"].keys()
    assert len(cells(figure)) == len(charts) + len(volumes)
    figure.savefig(tmp_path / "picture.png", dpi=20)


def test_each_site_has_a_column_with_empty_axes_for_missing_weights():
    maps = {**maps_of(spatial=ramp()), "decoder:model.2": {"channel": torch.rand(1, 4)}, "skip:model.1": {}}
    first, second = cells(plot_attention_maps(ramp(), maps, title="Maps"))
    assert [axes.get_title() for axes in first] == ["", "encoder:model.0", "decoder:model.2"]
    assert [len(axes.images) for axes in first] == [1, 2, 0]
    assert [len(axes.patches) for axes in second] == [0, 0, 1]
    assert len(cells(plot_attention_maps(ramp(), maps, site="encoder:model.0"))) == 1


def test_weights_along_the_axes_alone(tmp_path):
    axes = {f"axis{axis}": torch.rand(1, size) for axis, size in enumerate(GRID)}
    ((_, chart),) = cells(plot_attention_maps(ramp(), {"encoder:model.0": axes}))
    assert [len(line.get_ydata()) for line in chart.lines] == list(GRID)
    with pytest.raises(ValueError, match=r"`image` must lie on the grid of the maps, \(12, 10, 8\)"):
        plot_attention_maps(ramp()[1:], {"encoder:model.0": axes})


def test_an_image_may_be_a_metatensor_with_several_channels():
    x = MetaTensor(torch.stack([ramp(), -ramp()])[None], affine=torch.as_tensor(AFFINES["LAS, 5 mm slices"]))
    ((anatomy, _),) = cells(plot_attention_maps(x, maps_of(spatial=ramp())))
    assert anatomy.images[0].get_extent() == [0, 12, 0, 10]
    np.testing.assert_array_equal(anatomy.images[0].get_array(), ramp()[:, :, 4].T)
    ((plain, _),) = cells(plot_attention_maps(ramp(), maps_of(spatial=ramp())))
    assert not plain.texts, "without an affine the sides are unknown"


def test_constant_weights_have_a_scale(tmp_path):
    figure = plot_attention_maps(ramp(), maps_of(spatial=torch.full(GRID, 0.5)))
    ((_, axes),) = cells(figure)
    assert axes.images[1].get_clim() == pytest.approx((0.5, 0.55))
    figure.savefig(tmp_path / "picture.png", dpi=20)


def test_invalid_arguments_are_refused():
    with pytest.raises(ValueError, match=r"`site` got 'encoder'.*encoder:model\.0"):
        plot_attention_maps(ramp(), maps_of(spatial=ramp()), site="encoder")
    with pytest.raises(ValueError, match="`planes` got 'axail'; did you mean 'axial'"):
        plot_attention_maps(ramp(), maps_of(spatial=ramp()), planes="axail")
    with pytest.raises(ValueError, match="`maps` has nothing to show at encoder:"):
        plot_attention_maps(ramp(), {"encoder:": {}}, site="encoder:")
    with pytest.raises(ValueError, match="`planes` must name at least one of axial, coronal, sagittal, got"):
        plot_attention_maps(ramp(), maps_of(spatial=ramp()), planes=[])
    with pytest.raises(ValueError, match="`maps` must have at least one sample, got none in 'channel'"):
        plot_attention_maps(ramp(), {"encoder:": {"channel": torch.empty(0, 4)}})
    with pytest.raises(TypeError, match="`maps` must be the result of attention_maps, got Tensor"):
        plot_attention_maps(maps_of(spatial=ramp()), ramp())
    with pytest.raises(TypeError, match="`maps` must have a dictionary for each site, got Tensor for 'spatial'"):
        plot_attention_maps(ramp(), maps_of(spatial=ramp())["encoder:model.0"])
    with pytest.raises(ValueError, match=r"`image` must lie on the grid of the maps, \(12, 10, 8\)"):
        plot_attention_maps(ramp()[1:], maps_of(spatial=ramp()))
    with pytest.raises(ValueError, match="`voxels` must be the 2 passed to attention_maps"):
        plot_attention_maps(ramp(), maps_of(query=torch.stack([ramp(), ramp()])[None]))
    with pytest.raises(ValueError, match=r"`voxels` must lie on the grid \(12, 10, 8\), got \(12, 0, 0\)"):
        plot_attention_maps(ramp(), maps_of(spatial=ramp()), voxels=[(12, 0, 0)])
    with pytest.raises(
        ValueError, match=r"`voxels` must be a list of positions, such as \[\(6, 5, 4\)\], got \(1, 2, 3"
    ):
        plot_attention_maps(ramp(), maps_of(spatial=ramp()), voxels=(1, 2, 3))
    for affine in (np.eye(3), np.zeros((4, 4)), np.full((4, 4), np.nan)):
        with pytest.raises(ValueError, match="`affine` must be an invertible 4 x 4 matrix, got"):
            plot_attention_maps(ramp(), maps_of(spatial=ramp()), affine)


@pytest.mark.parametrize("shape", [(64,), (60, 2), (40, 40, 1)])
def test_text_fits_beside_flat_pictures(shape):
    """Neither the names of the rows nor the numbers of the colour scales overlap."""
    maps = maps_of(spatial=torch.rand(shape), channel_map=torch.rand(shape))
    figure = plot_attention_maps(torch.rand(shape), maps, planes=("coronal", "sagittal"))
    figure.canvas.draw()
    words = [row[0].yaxis.label for row in cells(figure)]
    for row in cells(figure):
        [scale] = row[1].child_axes
        words += [label for label in scale.get_yticklabels() if label.get_text()]
    boxes = [word.get_window_extent() for word in words]
    assert len(words) > 6
    assert not any(box.overlaps(other) for box, other in itertools.combinations(boxes, 2))


def test_an_image_may_be_a_mask():
    figure = plot_attention_maps(np.asarray(ramp() > 9), maps_of(spatial=ramp()))
    assert figure.axes[0].images[0].get_array().max() == 1


def test_text_and_legend_do_not_overlap_tick_labels():
    """Tick labels are long if weights differ little."""
    along = {f"axis{axis}": 0.6925 + 1e-4 * torch.rand(1, size) for axis, size in enumerate(GRID)}
    maps = {name: along | {"axes_map": ramp()[None]} for name in ("encoder:a", "encoder:b")}
    figure = plot_attention_maps(ramp(), maps, np.eye(4))
    figure.canvas.draw()
    head, left, right = cells(figure)[-1]
    assert [text.get_text() for text in head.get_legend().get_texts()] == [
        "left to right", "posterior to anterior", "inferior to superior",
    ]  # fmt: skip
    words = max(box.get_window_extent().x1 for box in (head.get_legend(), *head.texts))
    for edge, chart in ((words, left), (left.get_window_extent().x1, right)):
        numbers = [label.get_window_extent() for label in chart.get_yticklabels() if label.get_text()]
        assert len(numbers) > 2
        assert edge < min(box.x0 for box in numbers)


def test_a_window_has_an_outline_and_its_own_colour_scale():
    """A window is less than the 0.5 % of voxels that the colour scale would leave out."""
    rows = torch.zeros(1, 1, 40, 40, 20)
    rows[..., 8:11, 8:11, 9:12] = 1 + torch.rand(3, 3, 3)
    figure = plot_attention_maps(torch.rand(40, 40, 20), maps_of(query=rows), voxels=[(9, 9, 10)])
    ((_, axes),) = cells(figure)
    low, high = axes.images[1].get_clim()
    assert 1 < low < high < 2
    [outline] = axes.collections
    assert outline.get_datalim(axes.transData).size == pytest.approx((3, 3), abs=1)


def test_weights_of_a_context_are_a_line_for_each_voxel():
    weights = torch.rand(2, 3, 5)
    figure = plot_attention_maps(ramp(), maps_of(spatial=ramp(), context=weights))
    _, (_, axes) = cells(figure)
    for line, row in zip(axes.patches, weights.mean(0), strict=True):
        np.testing.assert_allclose(line.get_data().values, row)
