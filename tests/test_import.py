"""A name of attn3d costs what `import torch` costs, and the command line not even that."""

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
    return loaded_by("import attn3d; attn3d.attend")


def test_no_heavy_library_is_imported(modules):
    assert [name for name in modules if name.split(".")[0] in HEAVY] == []


def test_torch_alone_is_loaded_beside_the_library(modules):
    """What is counted is modules, which do not depend on the machine's load: seconds would."""
    foreign = [name for name in modules if name.split(".")[0] != "attn3d"]
    assert "attn3d.mechanisms.cbam" in modules
    assert len(foreign) <= 5, foreign


def test_the_count_sees_a_heavy_import():
    assert "nibabel" in loaded_by("import attn3d, nibabel")


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["plan", "--help"]], ids=" ".join)
def test_help_needs_no_pytorch(arguments):
    code = "import sys; from attn3d.cli import app; app(sys.argv[1:], standalone_mode=False); print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in result.stdout.splitlines()[-1].split()}
    assert "typer" in loaded
    assert loaded.isdisjoint({"torch", "monai", "numpy"})


def test_every_public_name_is_there_when_it_is_asked_for():
    """Also the modules that came with it; and what is not there is said to be missing."""
    code = "from attn3d import *; import attn3d; print(attend is attn3d.attend, CBAM is attn3d.mechanisms.CBAM); "
    code += "print(set(attn3d.__all__) <= set(dir(attn3d)), hasattr(attn3d, 'atend'))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["True", "True", "True", "False"]


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
