"""`import attn3d` costs what `import torch` costs: nothing else is loaded until it is asked for."""

import json
import subprocess
import sys

import pytest

HEAVY = ("monai", "matplotlib", "nibabel", "torchio", "lightning", "nilearn", "rich", "sklearn", "scipy", "typer")
LOADED = """
import json, sys, torch
before = set(sys.modules)
{}
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def loaded_by(statement):
    """The modules that a statement loads in a fresh process that has loaded torch."""
    result = subprocess.run(
        [sys.executable, "-c", LOADED.format(statement)], capture_output=True, text=True, check=True
    )
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
