import nibabel as nib
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from attn3d.plotting import COLORS, plot_lesions, plot_segmentation
from attn3d.plotting.hanging import Hanging, color_of, contrast
from attn3d.plotting.labels import label_colors
from attn3d.plotting.words import in_millilitres
from tests.segmentation.volumes import AFFINES, affine_of

NAMES = {1: "CSF", 2: "grey matter"}


def draw(figure, path):
    """The pixels of a figure, (rows, columns, 4)."""
    figure.savefig(path, dpi=60)
    return imread(path)


def pictures(figure):
    """The axes with pictures, as (rows of planes, columns)."""
    axes = [axes for axes in figure.axes if axes.images]
    return np.array(axes, dtype=object).reshape(3, -1)


def texts(axes):
    return [text.get_text() for text in axes.texts]


def volume(affine, shape=(30, 24, 12)):
    """A volume that is brighter to the right, front and top; the label is the octant right, front, top."""
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
        assert row > pixels.shape[0] / 2, "rows must go upwards"
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
        assert (np.abs(drawn[..., :3] - to_rgb(color)).max(axis=-1) < 0.02).sum() > 20, "not in the legend"


def test_planes_cross_at_the_given_point():
    affine = AFFINES["LAS, 5 mm slices"]
    image, labels = volume(affine)
    center = nib.affines.apply_affine(affine, (7, 11, 3))
    figure = plot_segmentation(image, {"reference": labels}, NAMES, affine, margin=1000, center=center)
    said = [axes.get_ylabel().split("\n")[1] for axes in pictures(figure)[:, 0]]
    assert said == [f"z = {center[2]:.0f} mm", f"y = {center[1]:.0f} mm", f"x = {center[0]:.0f} mm"]
    axial = np.asarray(pictures(figure)[0, 0].images[0].get_array())
    np.testing.assert_allclose(axial, image[:, :, 3].T)  # stored from left to right, shown from right to left


def test_a_region_is_outlined_in_every_picture():
    affine = AFFINES["RAS"]
    image, labels = volume(affine)
    region = np.zeros(image.shape, bool)
    region[:, 12:] = True
    figure = plot_segmentation(image, {"reference": labels}, NAMES, affine, margin=1000, outlines={"held out": region})
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()][-1] == "held out"
    assert all(axes.collections for axes in pictures(figure).ravel()[:4])


@pytest.mark.parametrize("columns", [1, 0])
def test_a_scan_without_labels_is_shown_whole(columns, tmp_path):
    image, labels = volume(AFFINES["RAS"])
    figure = plot_segmentation(image, {"network": 0 * labels} if columns else {}, NAMES, AFFINES["RAS"])
    assert pictures(figure)[0, 0].images[0].get_extent() == [0, 60, 0, 48]
    assert draw(figure, tmp_path / "picture.png").any()


def test_stray_voxels_of_a_network_do_not_change_what_is_shown():
    affine = AFFINES["RAS"]
    image, labels = volume(affine)
    stray = labels.copy()
    stray[0, 0, 0] = 1
    pairs = [{"reference": labels, "network": network} for network in (labels, stray)]
    clean, strayed = (pictures(plot_segmentation(image, pair, NAMES, affine, margin=2)) for pair in pairs)
    for one, other in zip(clean[:, 0], strayed[:, 0], strict=True):
        assert one.images[0].get_extent() == other.images[0].get_extent()
        assert one.get_ylabel() == other.get_ylabel()
    assert clean[0, 0].images[0].get_extent() == [0, 32, 0, 26], "30 x 24 mm, and 2 mm at sides that are not cut"


@pytest.mark.parametrize("plot", [plot_segmentation, plot_lesions])
def test_another_shape_is_refused(plot):
    image, labels = volume(AFFINES["RAS"])
    with pytest.raises(ValueError, match="'network' must have the image's shape"):
        plot(image, {"network": labels[1:]}, NAMES, AFFINES["RAS"])
    for unfit in (image[0], image[:0]):
        with pytest.raises(ValueError, match=r"`image` must be \(X, Y, Z\) with at least one voxel, got shape \("):
            plot(unfit, {}, NAMES, AFFINES["RAS"])


def test_at_least_one_lesion_is_shown():
    image, labels = volume(AFFINES["RAS"])
    with pytest.raises(ValueError, match="`lesions` must be at least 1, got 0"):
        plot_lesions(image, {"network": labels}, NAMES, AFFINES["RAS"], lesions=0)


def test_a_window_is_black_at_its_lower_and_white_at_its_upper_end():
    image, labels = volume(AFFINES["RAS"])
    for plot in (plot_segmentation, plot_lesions):
        figure = plot(image, {"reference": labels}, NAMES, AFFINES["RAS"], window=(40, 80))
        picture = next(axes for axes in figure.axes if axes.images).images[0]
        assert picture.get_clim() == (0, 80)


def lesions(affine, shape=(40, 40, 14)):
    """Noise with a lesion of 8 voxels in slice 2, and one of 3 and 12 in slices 9 and 10."""
    image = np.random.default_rng(0).uniform(10, 50, shape)
    labels = np.zeros(shape, np.uint8)
    labels[5:9, 6:8, 2] = 2
    labels[30:33, 30, 9] = labels[30:33, 30:34, 10] = 1
    return image, labels


@pytest.mark.parametrize("name", ["RAS", "LAS, 5 mm slices", "oblique"])
def test_slices_go_through_the_largest_lesions(name):
    affine = AFFINES[name]
    image, labels = lesions(affine)
    figure = plot_lesions(image, {"reference": labels, "network": labels * 0}, NAMES, affine, lesions=5)
    rows = np.array([axes for axes in figure.axes if axes.images], dtype=object).reshape(-1, 3)
    assert len(rows) == 2
    voxel = abs(np.linalg.det(affine[:3, :3])) / 1000
    for row, index, voxels in zip(rows, (10, 2), (15, 8), strict=True):
        np.testing.assert_allclose(np.sort(row[0].images[0].get_array(), None), np.sort(image[:, :, index], None))
        assert row[0].get_ylabel().endswith(f"reference\nlesion of {in_millilitres(voxels * voxel)} ml")
        coloured = [np.asarray(axes.images[1].get_array())[..., 3].astype(bool).sum() for axes in row[1:]]
        assert coloured == [12 if index == 10 else 8, 0]
        assert texts(row[0]) == list("RLPA")
        left, right, bottom, top = row[0].images[0].get_extent()
        size = nib.affines.voxel_sizes(affine)[:2] * 40
        assert (right - left, top - bottom) == pytest.approx(tuple(size))
        assert row[0].get_aspect() == 1
    assert [axes.get_title() for axes in rows[0]] == ["scan", "reference", "network"]


def test_volumes_have_no_exponent_and_one_decimal_from_1_ml():
    volumes = [0.0, 0.000027, 0.0404, 0.5, 0.9949, 0.996, 1.0, 12.34]
    assert [in_millilitres(one) for one in volumes] == ["0.0", "0.000027", "0.04", "0.5", "0.99", "1.0", "1.0", "12.3"]


def test_without_true_lesions_a_false_one_or_the_middle_is_shown():
    image, labels = lesions(AFFINES["RAS"])
    for network, says in ((labels, "network\nlesion of 0.12 ml"), (labels * 0, "nothing labelled")):
        figure = plot_lesions(image, {"reference": labels * 0, "network": network}, NAMES, AFFINES["RAS"], title="A")
        assert says in figure.axes[0].get_ylabel()
        assert figure.get_suptitle() == "A"


def test_a_scan_without_contrast_is_all_black():
    assert contrast(np.full((3, 3, 3), 7.0), None) == (0, 1)
    low, high = contrast(np.arange(1000.0), None)
    assert (low, high) == pytest.approx((11, 998), abs=1)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_do_not_change_the_contrast(value):
    scan = np.append(np.arange(1000.0), value)
    assert contrast(scan, None) == contrast(scan[:-1], None)
    assert contrast(np.full((3, 3, 3), value), None) == (0, 1)


@pytest.mark.parametrize("shape", [(35, 51, 35), (12, 12, 12), (120, 150, 3), (300, 20, 20)])
@pytest.mark.parametrize("draw_it", [plot_lesions, plot_segmentation])
def test_text_fits_beside_small_and_flat_volumes(draw_it, shape):
    """No texts overlap, and the border of the figure cuts none."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    image = np.random.default_rng(0).normal(100, 10, shape)
    labels = np.zeros(shape, np.uint8)
    labels[tuple(slice(size // 4, size // 2 + 1) for size in shape)] = 1
    names = {1: "anterior hippocampus", 2: "posterior hippocampus"}
    columns = {"reference": labels, "network": labels}
    figure = draw_it(image, columns, names, np.eye(4), title="hippocampus_001_left_side_second_visit, simulated")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    words = [figure._suptitle, *figure.legends[0].get_texts()]
    words += [word for axes in figure.axes for word in (axes.title, axes.yaxis.label) if word.get_text()]
    boxes = [word.get_window_extent(canvas.get_renderer()) for word in words]
    for index, box in enumerate(boxes):
        assert box.x0 >= 0, words[index]
        assert box.y0 >= 0, words[index]
        assert box.x1 <= figure.bbox.x1, words[index]
        assert box.y1 <= figure.bbox.y1, words[index]
        for other in range(index):
            assert not box.overlaps(boxes[other]), (words[index], words[other])


def test_names_are_not_formulas():
    """Dollar signs are drawn literally, and names that are not UTF-8 can be drawn."""
    image, labels = volume(AFFINES["RAS"])
    names, title = {1: r"$\frac{", 2: "[red] a$b$"}, "caf\udce9 $x$"
    figure = plot_lesions(image, {"$y$": labels, "z": 2 * labels}, names, AFFINES["RAS"], title=title)
    figure.draw_without_rendering()
    drawn = [text._preprocess_math(text.get_text()) for text in [figure._suptitle, *figure.legends[0].get_texts()]]
    assert drawn == [(r"caf\udce9 $x$", False), (r"$\frac{", False), ("[red] a$b$", False)]


def test_the_margin_around_labels_is_in_millimetres():
    hanging = Hanging((40, 20, 9), np.diag([1.0, 2.0, 5.0, 1.0]))
    mask = np.zeros((40, 20, 9), bool)
    mask[20, 10, 4] = True
    hanging.crop(mask, margin=10.0)
    assert (hanging.low.tolist(), hanging.high.tolist()) == ([10, 5, 2], [31, 16, 7])


def test_values_of_one_name_have_one_colour():
    """As those of a region, which has several values."""
    image, labels = volume(AFFINES["RAS"])
    names = {1: "edema", 2: "core", 4: "core"}
    assert label_colors(names) == {1: COLORS[0], 2: COLORS[1], 4: COLORS[1]}
    figure = plot_segmentation(image, {"reference": 2 * labels, "network": 4 * labels}, names, AFFINES["RAS"])
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["core"]


def test_every_label_has_its_own_colour():
    assert tuple(map(color_of, range(7))) == COLORS
    assert len({to_rgb(color_of(index)) for index in range(255)}) == 255


@pytest.mark.parametrize("draw_it", [plot_lesions, plot_segmentation])
@pytest.mark.parametrize("name", ["s{}", "structure number {} with a long name", "a name {} " + 8 * "that is wider "])
def test_a_long_legend_fits_below_pictures_of_the_same_size(draw_it, name):
    image = np.random.default_rng(0).normal(100, 10, (30, 30, 10))
    labels = np.random.default_rng(1).integers(0, 41, image.shape).astype(np.uint8)
    heights = []
    for count in (1, 40):
        names = {value: name.format(value) for value in range(1, count + 1)}
        figure = draw_it(image, {"reference": labels}, names, np.diag([1, 1, 5, 1]), title=15 * "a long title ")
        figure.draw_without_rendering()
        heights.append(figure.axes[0].get_window_extent().height)
        (legend,) = figure.legends
        assert len(legend.get_texts()) == count
        for text in (*legend.get_texts(), figure._suptitle):
            box = text.get_window_extent()
            assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1, text
            assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1, text
    assert heights[1] == pytest.approx(heights[0], rel=0.1)


@pytest.mark.parametrize("draw_it", [plot_segmentation, plot_lesions])
def test_one_long_name_leaves_no_gap_above_the_legend(draw_it):
    image = np.random.default_rng(0).normal(100, 10, (30, 30, 10))
    labels = np.random.default_rng(1).integers(0, 41, image.shape).astype(np.uint8)
    names = {1: "a name of many words that needs more than one line"} | {
        value: f"label_{value}" for value in range(2, 41)
    }
    figure = draw_it(image, {"reference": labels}, names, np.diag([1, 1, 5, 1]))
    figure.draw_without_rendering()
    legend = figure.legends[0].get_window_extent()
    lowest = min(axes.get_window_extent().y0 for axes in figure.axes)
    assert 0 < (lowest - legend.y1) / figure.dpi < 1, "inches"
    columns = {round(text.get_window_extent().x0) for text in figure.legends[0].get_texts()}
    assert len(columns) > 1


def test_a_lesion_in_air_is_in_the_picture():
    """Also if it is at the border of the volume, and the first segmentation is empty."""
    image = np.full((40, 40, 40), -1000.0)
    image[10:30, 10:30, 10:30] = 40
    labels = np.zeros(image.shape, np.uint8)
    labels[1:4, 15:20, 1:4] = 1
    figure = plot_lesions(image, {"reference": 0 * labels, "network": labels}, NAMES, np.eye(4), window=(40, 80))
    coloured = [np.asarray(axes.images[1].get_array())[..., 3].astype(bool).sum() for axes in figure.axes[1:3]]
    assert coloured == [0, 15]
    assert figure.axes[0].get_ylabel().startswith("z = 1 mm")


@pytest.mark.parametrize("values", [(0.0, 5.0), (False, True), (-1000.0, 40.0)])
def test_a_scan_of_two_values_is_black_and_white(values):
    assert contrast(np.array([values[0], values[1], values[1]]), None) == values


@pytest.mark.parametrize("window", [(40, -80), (40, 0), (np.nan, 80), (40, np.inf), (40, 80, 1)])
def test_a_window_without_a_width_is_refused(window):
    image, labels = volume(AFFINES["RAS"])
    for plot in (plot_segmentation, plot_lesions):
        with pytest.raises(ValueError, match=r"`window` must be a level and a positive width, such as \(40, 80\), got"):
            plot(image, {"reference": labels}, NAMES, AFFINES["RAS"], window=window)


def test_a_negative_margin_is_refused():
    image, labels = volume(AFFINES["RAS"])
    with pytest.raises(ValueError, match="`margin` must be a finite number of at least 0, got -3"):
        plot_segmentation(image, {"reference": labels}, NAMES, AFFINES["RAS"], margin=-3)
