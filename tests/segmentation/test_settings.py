"""The checks of settings before any data are read."""

import pytest

from attn3d.segmentation.errors import FileError
from attn3d.segmentation.labels import Labels
from attn3d.segmentation.losses import create_loss
from attn3d.segmentation.settings import Configuration, settings_from


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"at": ["skips"]}, ValueError, "`at` got 'skips'; did you mean 'skip'[?]"),
        ({"at": ["skip", "Encoder:down"]}, ValueError, "`at` got 'Encoder'; did you mean 'encoder'[?]"),
        (
            {"attention": ["cbam", {"reductio": 2}]},
            TypeError,
            "`attention` CBAM has no option `reductio`; did you mean 'reduction'[?]",
        ),
        ({"attention": ["cbam", {"channels": 8}]}, TypeError, "`attention` CBAM has no option `channels`"),
    ],
)
def test_unknown_sites_and_options_are_refused_at_once(given, error, message, tmp_path):
    with pytest.raises(error, match=message):
        settings_from(None, given)
    file = tmp_path / "settings.yaml"
    file.write_text(str(given))
    with pytest.raises(FileError, match=message):
        settings_from(file, {})


@pytest.mark.parametrize(
    "given",
    [
        {"at": ["encoder", "path:model.*", "skip:upcat_1"]},
        {"attention": ["attention_gate", {"reduction": 4}]},
        {"attention": ["non_local", {"pattern": ["window", {"size": 8}]}]},
        {"attention": "none", "at": ["not used"]},
    ],
)
def test_known_sites_and_options_are_accepted(given):
    settings_from(None, given)


@pytest.mark.parametrize(
    ("epochs", "minutes", "words"),
    [(1, None, "1 epoch"), (1_500_000, None, "1500000 epochs"), (None, 1.0, "1 minute"), (None, 0.5, "0.5 minutes")],
)
def test_the_budget_as_text(epochs, minutes, words):
    assert Configuration.model_construct(epochs=epochs, minutes=minutes).budget == words


def test_an_unknown_loss_is_refused():
    with pytest.raises(ValueError, match="`loss` got 'tverski'; did you mean 'tversky'"):
        create_loss("tverski", Labels.of({1: "lesion"}))
