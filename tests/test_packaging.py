"""The same code imports from an editable install, a wheel and an sdist."""

import ast
import json
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from email.parser import Parser
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path) -> str:
    finished = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A copy of the repository, since building leaves files in it."""
    ignored = shutil.ignore_patterns(".git", ".venv", ".*_cache", "out", "build", "dist", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, copy := tmp_path_factory.mktemp("packaging") / "source", ignore=ignored)
    return copy


@pytest.fixture(scope="module")
def built(source) -> dict[str, Path]:
    """The sdist, and the wheel that is built from that sdist."""
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", source.parent / "dist", source, cwd=source.parent)
    (sdist,) = (source.parent / "dist").glob("*.tar.gz")
    (wheel,) = (source.parent / "dist").glob("*.whl")
    return {"sdist": sdist, "wheel": wheel}


def imported(*folders: Path) -> set[str]:
    """The top-level names of all modules that files import from outside."""
    names = set()
    for path in (path for folder in folders for path in folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names.add(str(node.module).partition(".")[0])
    return names


def modules() -> dict[str, bytes]:
    """The package's files by their path in an installation."""
    files = {f"dim_hf/{path.relative_to(ROOT / 'src/dim_hf')}": path for path in (ROOT / "src/dim_hf").rglob("*.py")}
    files |= {f"dim_hf/pipelines/{path.name}": path for path in (ROOT / "pipelines").glob("*.py")}
    return {name: path.read_bytes() for name, path in files.items()}


def test_wheel_holds_every_module_and_its_requirements(built):
    with zipfile.ZipFile(built["wheel"]) as wheel:
        files = {name: wheel.read(name) for name in wheel.namelist()}
    metadata = Parser().parsestr(next(text.decode() for name, text in files.items() if name.endswith("/METADATA")))
    package = {name: text for name, text in files.items() if ".dist-info/" not in name}
    for template in ("dim_hf/hub/model_card.md", "dim_hf/evaluation/report.html"):
        assert package.pop(template) == (ROOT / "src" / template).read_bytes()
    assert package.pop("dim_hf/py.typed") == b""
    assert package == modules()
    required = metadata.get_all("Requires-Dist")
    assert {"torch>=2.6", "diffusers>=0.41"} <= set(required)
    # What is imported is required, not only by something else that is.
    named = {re.split("[^a-z0-9-]", line.lower().replace("_", "-"))[0] for line in required}
    scripts = {path.stem for path in (ROOT / "training").glob("*.py")}
    unnamed = imported(ROOT / "src", ROOT / "pipelines", ROOT / "training") - {"dim_hf", *scripts}
    distributions = packages_distributions()
    for module in unnamed - sys.stdlib_module_names:
        assert {name.lower().replace("_", "-") for name in distributions[module]} & named, module
    assert metadata["Requires-Python"] == ">=3.10" and metadata["License-Expression"] == "Apache-2.0"
    assert any(name.endswith("/LICENSE") for name in files)


def test_sdist_holds_the_scripts_and_the_tests(built):
    with tarfile.open(built["sdist"]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    for path in (
        "training/train_dim.py",
        "space/app.py",
        "distilled/mnist/model_index.json",
        "tests/test_packaging.py",
        "constraints.txt",
        "Makefile",
        ".ci/run",
    ):
        assert path in names


@pytest.mark.parametrize("kind", ["editable", "wheel", "sdist"])
def test_installed_package_works_away_from_the_repository(kind, source, built, tmp_path):
    arguments = ["--editable", source] if kind == "editable" else [built[kind]]
    prefix = tmp_path / "environment"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    run(*pip, "--ignore-installed", "--prefix", prefix, *arguments, cwd=tmp_path)
    site_packages = Path(sysconfig.get_path("purelib", vars={"base": str(prefix)}))
    if kind == "sdist":
        # Of the files that the wheel installs and that are imported below, the very bytes.
        with zipfile.ZipFile(built["wheel"]) as wheel:
            files = {name: wheel.read(name) for name in wheel.namelist() if ".dist-info/" not in name}
        installed = [path for path in site_packages.glob("dim_hf/**/*") if path.is_file() and path.suffix != ".pyc"]
        assert {str(path.relative_to(site_packages)): path.read_bytes() for path in installed} == files
        return

    # Without `site`, so that no other installation of the package is in the way.
    names = [name.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for name in modules()]
    script = f"""
import importlib, json, site, sys
site.addsitedir({str(site_packages)!r})
sys.path.append({sysconfig.get_path("purelib")!r})
files = {{name: importlib.import_module(name).__file__ for name in {names}}}
from dim_hf.models import DiMGenerator
from dim_hf.pipelines import DiMPipeline
DiMPipeline(DiMGenerator(num_classes=2, sample_size=8, block_out_channels=(8, 4))).save_pretrained("saved")
print(json.dumps(files))
"""
    files = json.loads(run(sys.executable, "-S", "-c", script, cwd=tmp_path).splitlines()[-1])
    home = source if kind == "editable" else site_packages
    assert all(Path(file).is_relative_to(home) for file in files.values()), files
    assert (tmp_path / "saved" / "pipeline.py").read_bytes() == (ROOT / "pipelines" / "pipeline_dim.py").read_bytes()
