"""`import attn3d` costs what `import torch` costs: nothing else is loaded until it is asked for."""

import json
import subprocess
import sys

import pytest

from attn3d import segmentation

HEAVY = ("monai", "matplotlib", "nibabel", "torchio", "lightning", "nilearn", "rich", "sklearn", "scipy", "typer")
LOADED = """
import json, sys
{}
before = set(sys.modules)
{}
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def loaded_by(statement, before="import torch"):
    """The modules that a statement loads in a fresh process that has loaded torch."""
    code = LOADED.format(before, statement)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def modules():
    return loaded_by("import attn3d")


def test_no_heavy_library_is_imported(modules):
    assert [name for name in modules if name.split(".")[0] in HEAVY] == []


def test_torch_alone_is_loaded_beside_the_library(modules):
    """What is counted is modules, which do not depend on the machine's load: seconds would."""
    foreign = [name for name in modules if name.split(".")[0] != "attn3d"]
    assert "attn3d.mechanisms.cbam" in modules
    assert len(foreign) <= 5, foreign


def test_the_count_sees_a_heavy_import():
    assert "nibabel" in loaded_by("import attn3d, nibabel")


def test_a_prediction_starts_without_what_trains_and_draws():
    """Nor does an evaluation need it."""
    modules = loaded_by("from attn3d.segmentation import evaluate, predict", before="import monai")
    loaded = {name.split(".")[0] for name in modules}
    assert "attn3d" in loaded
    assert {"lightning", "torchio", "nilearn", "jinja2"}.isdisjoint(loaded)


def test_every_public_name_of_the_application_is_there_when_it_is_asked_for():
    assert [name for name in segmentation.__all__ if not hasattr(segmentation, name)] == []
    assert set(segmentation.__all__) <= set(dir(segmentation))
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        segmentation.trian  # noqa: B018
