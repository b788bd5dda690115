import nibabel as nib
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from attn3d.plotting import COLORS, plot_segmentation
from tests.segmentation.volumes import AFFINES, affine_of

NAMES = {1: "CSF", 2: "grey matter"}


def draw(figure, path):
    """The figure as a person sees it, (rows, columns, 4)."""
    figure.savefig(path, dpi=60)
    return imread(path)


def pictures(figure):
    """The axes with pictures, as (rows of planes, columns)."""
    axes = [axes for axes in figure.axes if axes.images]
    return np.array(axes, dtype=object).reshape(3, -1)


def texts(axes):
    return [text.get_text() for text in axes.texts]


def volume(affine, shape=(30, 24, 12)):
    """Bright towards right, anterior, superior; the label is the right anterior superior eighth."""
    index = np.moveaxis(np.indices(shape), 0, -1)
    place = nib.affines.apply_affine(affine, index)
    place -= place.reshape(-1, 3).mean(axis=0)
    labels = (place > 0).all(axis=-1).astype(np.uint8)
    return place.sum(axis=-1), labels


def centre(affine, shape):
    return nib.affines.apply_affine(affine, (np.array(shape) - 1) / 2)


@pytest.mark.parametrize("name", AFFINES)
def test_right_and_anterior_are_at_the_left_and_superior_at_the_top(name):
    affine = AFFINES[name]
    image, labels = volume(affine)
    figure = plot_segmentation(
        image, {"reference": labels}, NAMES, affine, margin=1000, center=centre(affine, image.shape)
    )
    for axes, letters in zip(pictures(figure)[:, 0], ("RLPA", "RLIS", "APIS"), strict=True):
        assert texts(axes) == list(letters)
        pixels = np.asarray(axes.images[0].get_array())
        row, column = np.unravel_index(pixels.argmax(), pixels.shape)
        assert row > pixels.shape[0] / 2, "rows go upwards"
        assert column < pixels.shape[1] / 2


def test_proportions_are_those_in_millimetres():
    affine = affine_of(np.diag([1.0, 2.0, 5.0]))
    image, labels = volume(affine)
    figure = plot_segmentation(image, {"reference": labels}, NAMES, affine, margin=1000)
    for axes, extent in zip(pictures(figure)[:, 0], ((30, 48), (30, 60), (48, 60)), strict=True):
        left, right, bottom, top = axes.images[0].get_extent()
        assert (right - left, top - bottom) == pytest.approx(extent)
        assert axes.get_aspect() == 1


def test_labels_are_coloured_named_and_side_by_side(tmp_path):
    affine = AFFINES["RAS"]
    image, labels = volume(affine)
    figure = plot_segmentation(image, {"reference": labels, "network": 2 * labels}, NAMES, affine, title="A phantom")
    assert [axes.get_title() for axes in pictures(figure)[0]] == ["scan", "reference", "network"]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["CSF", "grey matter"]
    assert figure.get_suptitle() == "A phantom"
    drawn = draw(figure, tmp_path / "picture.png")
    for color in COLORS[:2]:
        assert (np.abs(drawn[..., :3] - to_rgb(color)).max(axis=-1) < 0.02).sum() > 20, "in the legend at least"


def test_planes_cross_where_they_are_told_and_say_so():
    affine = AFFINES["LAS, 5 mm slices"]
    image, labels = volume(affine)
    center = nib.affines.apply_affine(affine, (7, 11, 3))
    figure = plot_segmentation(image, {"reference": labels}, NAMES, affine, margin=1000, center=center)
    said = [axes.get_ylabel().split("\n")[1] for axes in pictures(figure)[:, 0]]
    assert said == [f"z = {center[2]:.0f} mm", f"y = {center[1]:.0f} mm", f"x = {center[0]:.0f} mm"]
    axial = np.asarray(pictures(figure)[0, 0].images[0].get_array())
    np.testing.assert_allclose(axial, image[:, :, 3].T)  # stored from left to right, hung from right to left


def test_a_region_is_outlined_in_every_picture():
    affine = AFFINES["RAS"]
    image, labels = volume(affine)
    region = np.zeros(image.shape, bool)
    region[:, 12:] = True
    figure = plot_segmentation(image, {"reference": labels}, NAMES, affine, margin=1000, outlines={"held out": region})
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()][-1] == "held out"
    assert all(axes.collections for axes in pictures(figure).ravel()[:4])


def test_nothing_labelled_shows_all_of_the_scan(tmp_path):
    image, labels = volume(AFFINES["RAS"])
    figure = plot_segmentation(image, {"network": 0 * labels}, NAMES, AFFINES["RAS"])
    assert pictures(figure)[0, 0].images[0].get_extent() == [0, 60, 0, 48]
    assert draw(figure, tmp_path / "picture.png").any()


def test_another_shape_is_refused():
    image, labels = volume(AFFINES["RAS"])
    with pytest.raises(ValueError, match="'network' must have the image's shape"):
        plot_segmentation(image, {"network": labels[1:]}, NAMES, AFFINES["RAS"])
