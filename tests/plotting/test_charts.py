import math

import numpy as np
import pytest

from attn3d.plotting import confidence_interval, plot_calibration, plot_comparison, plot_training


def test_the_interval_is_students_t():
    low, high = confidence_interval([0.7, 0.8, 0.9])
    half = 4.302653 * 0.1 / math.sqrt(3)  # t(0.975; 2), s = 0.1
    assert (low, high) == (pytest.approx(0.8 - half), pytest.approx(0.8 + half))
    assert confidence_interval([0.8]) == (-math.inf, math.inf)
    assert confidence_interval([0.5, 0.5]) == (0.5, 0.5)


def results(**dice):
    parameters = {name: 1000 + 200 * index for index, name in enumerate(dice)}
    return {name: {"dice": values, "parameters": parameters[name]} for name, values in dice.items()}


def test_mechanisms_are_sorted_beside_the_plain_network(tmp_path):
    figure = plot_comparison(results(none=[0.7, 0.8], se=[0.9, 0.8], eca=[0.6, 0.7]), title="Simulated")
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["eca  (+400)", "se  (+200)"]
    assert axes.get_legend().get_texts()[0].get_text() == "plain network, 0.750"
    (band,) = axes.patches
    low, high = confidence_interval([0.7, 0.8])
    assert (band.get_x(), band.get_x() + band.get_width()) == (pytest.approx(low), pytest.approx(high))
    seeds = [line.get_xdata() for line in axes.lines if line.get_marker() == "o"]
    np.testing.assert_array_equal(seeds, [[0.6, 0.7], [0.9, 0.8]])
    assert [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "D"] == [
        pytest.approx(0.65), pytest.approx(0.85),
    ]  # fmt: skip
    assert "2 seeds" in axes.get_xlabel()
    figure.savefig(tmp_path / "comparison.png", dpi=20)


@pytest.mark.parametrize("sites", ["skip", "encoder, decoder, bottleneck, skip, block, residual (simulated scans)"])
def test_no_text_is_cut_off(sites):
    figure = plot_comparison(
        results(none=[0.7, 0.8], attention_gate=[0.9, 0.8]), title=f"ResidualDynUNet, attention at {sites}"
    )
    figure.draw_without_rendering()
    (axes,), (title,) = figure.axes, figure.texts
    for text in (axes.xaxis.label, title, *axes.get_legend().get_texts(), *axes.get_yticklabels()):
        box = text.get_window_extent()
        assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1, text
        assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1, text
    assert not title.get_window_extent().overlaps(axes.get_legend().get_window_extent())


def test_without_several_seeds_or_a_plain_network():
    (axes,) = plot_comparison(results(se=[0.9], eca=[0.8])).axes
    assert not axes.patches
    assert {line.get_marker() for line in axes.lines} == {"o", "D"}
    assert [label.get_text() for label in axes.get_yticklabels()] == ["eca  (1,200)", "se  (1,000)"]
    with pytest.raises(ValueError, match="at least one mechanism besides 'none'"):
        plot_comparison(results(none=[0.8]))


def test_curves_skip_the_epochs_without_a_value(tmp_path):
    rows = [{"epoch": epoch, "loss": 1 / epoch, "learning_rate": 1e-3 / epoch, "dice": None} for epoch in range(1, 5)]
    rows[1] |= {"dice": 0.5, "dice IPH": 0.6}
    rows[3] |= {"dice": 0.7, "dice IPH": 0.8}
    figure = plot_training(rows)
    loss, rate, dice = figure.axes
    np.testing.assert_allclose(loss.lines[0].get_ydata(), [1, 1 / 2, 1 / 3, 1 / 4])
    assert rate.lines[0].get_ydata()[0] == 1e-3
    assert {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in dice.lines} == {
        "IPH": [(2, 0.6), (4, 0.8)],
        "mean": [(2, 0.5), (4, 0.7)],
    }
    figure.savefig(tmp_path / "training.svg")
    assert plot_training([{"epoch": 1, "loss": 1.0, "learning_rate": 1e-3}]).axes[2].lines[:] == []


def test_one_seed_of_the_plain_network_has_no_band():
    (axes,) = plot_comparison(results(none=[0.7], se=[0.9])).axes
    assert not axes.patches


def test_a_reliability_diagram_leaves_empty_bins_out(tmp_path):
    empty = {"voxels": 0, "confidence": None, "accuracy": None}
    bins = [
        empty,
        {"voxels": 30, "confidence": 0.6, "accuracy": 0.5},
        {"voxels": 70, "confidence": 0.9, "accuracy": 0.8},
    ]
    figure = plot_calibration(bins)
    diagram, counts = figure.axes
    np.testing.assert_array_equal(diagram.lines[1].get_xydata(), [[0.6, 0.5], [0.9, 0.8]])
    assert [bar.get_height() for bar in counts.patches] == [0, 30, 70]
    figure.savefig(tmp_path / "calibration.png", dpi=20)
    assert len(plot_calibration([empty]).axes[0].lines) == 1, "only the line of perfect calibration"


@pytest.mark.parametrize("dice", [[], [None], None])
def test_a_mechanism_without_dice_is_refused(dice):
    with pytest.raises(ValueError, match="`results` must have a number as 'dice' for each seed of 'se', got"):
        plot_comparison(results(none=[0.8], se=dice))


def test_nothing_to_show_is_refused():
    with pytest.raises(ValueError, match=r"`reliability` must have at least one bin, got \[\]"):
        plot_calibration([])
    with pytest.raises(ValueError, match=r"`values` must have at least one number, got \[\]"):
        confidence_interval([])


def test_labels_that_start_with_an_underscore_are_in_the_legend():
    rows = [{"epoch": 1, "loss": 1.0, "learning_rate": 1e-3, "dice": 0.5, "dice _lesion": 0.4}]
    assert [text.get_text() for text in plot_training(rows).legends[0].get_texts()] == ["_lesion", "mean"]


def test_many_labels_do_not_leave_the_figure_or_push_the_curves_aside():
    names = [f"structure {index} with a long name" for index in range(60)]
    row = {"epoch": 1, "loss": 1.0, "learning_rate": 1e-3, "dice": 0.5} | {f"dice {name}": 0.5 for name in names}
    figure = plot_training([row])
    figure.draw_without_rendering()
    texts = figure.legends[0].get_texts()
    assert [text.get_text() for text in texts] == [*names, "mean"]
    for text in (*texts, *(axes.xaxis.label for axes in figure.axes)):
        box = text.get_window_extent()
        assert figure.bbox.contains(box.x0, box.y0)
        assert figure.bbox.contains(box.x1, box.y1)
    few = plot_training([row | dict.fromkeys(row.keys() - {"epoch", "dice"})])
    few.draw_without_rendering()
    for axes, other in zip(figure.axes, few.axes, strict=True):
        assert axes.bbox.width > 0.9 * other.bbox.width
        assert axes.bbox.height > 0.8 * other.bbox.height


def test_each_of_many_labels_has_its_own_colour():
    rows = [{"epoch": 1, "loss": 1.0, "learning_rate": 1e-3} | {f"dice {index}": 0.5 for index in range(20)}]
    assert len({line.get_color() for line in plot_training(rows).axes[2].lines}) == 20
