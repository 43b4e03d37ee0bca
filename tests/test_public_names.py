"""The public names of the package, and that importing a part does not load the rest."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import dim_hf


def test_every_public_name_is_there():
    assert set(dim_hf.__all__) <= set(dir(dim_hf))
    for name in dim_hf.__all__:
        assert getattr(dim_hf, name).__name__ == name
    with pytest.raises(AttributeError, match="module 'dim_hf' has no attribute 'DiMNothing'"):
        dim_hf.DiMNothing  # noqa: B018
    with pytest.raises(ImportError, match="DiMNothing"):
        from dim_hf import DiMNothing  # noqa: F401


def test_there_is_one_pipeline():
    from dim_hf import pipelines

    assert dim_hf.DiMPipeline is pipelines.DiMPipeline
    assert dim_hf.DiMPipeline.__doc__ == pipelines.pipeline_dim.DiMPipeline.__doc__
    # The file of a repository must not know of the package.
    imported = ast.walk(ast.parse(Path(pipelines.pipeline_dim.__file__).read_text()))
    modules = [getattr(node, "module", None) or node.names[0].name for node in imported if hasattr(node, "names")]
    assert "torch" in modules and not [name for name in modules if name.startswith("dim_hf")]


@pytest.mark.parametrize(
    "statement",
    ["import dim_hf", "from dim_hf.evaluation.metrics import Accuracy", "from dim_hf.evaluation import metrics"],
)
def test_only_the_part_that_is_imported_is_loaded(statement):
    code = f"{statement}\nimport sys\nprint(*({{'torch', 'diffusers', 'transformers', 'timm'}} & sys.modules.keys()))"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert (finished.returncode, finished.stdout.strip()) == (0, ""), finished.stderr
