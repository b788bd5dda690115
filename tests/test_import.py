"""Importing attn3d imports little more than torch, and the help of the command line does not import torch."""

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
    """The modules that a statement imports in a new process, after `before`."""
    code = LOADED.format(before, statement)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def modules():
    # The operators register their flop formulas with PyTorch's counter, which imports triton in a CUDA build.
    return loaded_by("import attn3d; attn3d.attend", before="import torch.utils.flop_counter")


def test_no_heavy_library_is_imported(modules):
    assert [name for name in modules if name.split(".")[0] in HEAVY] == []


def test_few_modules_are_imported_besides_torch(modules):
    """Counts modules and not seconds, which would depend on the load of the machine."""
    foreign = [name for name in modules if name.split(".")[0] != "attn3d"]
    assert "attn3d.mechanisms.cbam" in modules
    assert len(foreign) <= 5, foreign


def test_insertion_does_not_import_the_compiler():
    """It takes seconds. PyTorch itself imports it for some layers, such as ReLU, on the meta device of the probe."""
    code = "net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 1), torch.nn.Conv2d(4, 2, 1)); "
    code += "import attn3d; attn3d.insert_attention(net, 'se', at='path:0', input_shape=(1, 1, 6, 5))"
    modules = loaded_by(code)
    assert "attn3d.insertion" in modules
    assert "torch._dynamo" not in modules


def test_the_count_detects_a_heavy_import():
    assert "nibabel" in loaded_by("import attn3d, nibabel")


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["plan", "--help"]], ids=" ".join)
def test_help_needs_no_pytorch(arguments):
    code = "import sys; from attn3d.cli import app; app(sys.argv[1:], standalone_mode=False); print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in result.stdout.splitlines()[-1].split()}
    assert "typer" in loaded
    assert loaded.isdisjoint({"torch", "monai", "numpy"})


def test_every_public_name_can_be_imported():
    """Also submodules; `hasattr` is false for unknown names."""
    code = "from attn3d import *; import attn3d; print(attend is attn3d.attend, CBAM is attn3d.mechanisms.CBAM); "
    code += "print(set(attn3d.__all__) <= set(dir(attn3d)), hasattr(attn3d, 'atend'))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["True", "True", "True", "False"]


def test_prediction_does_not_import_libraries_for_training_and_plotting():
    """Nor does evaluation."""
    modules = loaded_by("from attn3d.segmentation import evaluate, predict", before="import monai")
    loaded = {name.split(".")[0] for name in modules}
    assert "attn3d" in loaded
    assert {"lightning", "torchio", "nilearn", "jinja2"}.isdisjoint(loaded)


def test_every_public_name_of_the_application_can_be_imported():
    assert [name for name in segmentation.__all__ if not hasattr(segmentation, name)] == []
    assert set(segmentation.__all__) <= set(dir(segmentation))
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        segmentation.trian  # noqa: B018
