"""The examples, run as they stand on a tiny pipeline."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch

from dim_hf import DiMGenerator, DiMPipeline


EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("pipeline")
    generator = DiMGenerator(10, 8, 1, latent_dim=4, block_out_channels=(4,), layers_per_block=(0,))
    DiMPipeline(generator, {label: str(label) for label in range(10)}).save_pretrained(folder)
    return str(folder)


def run(name, *arguments):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module.main(list(arguments))


@pytest.mark.parametrize("name", ["pytorch_loop", "transformers_trainer"])
def test_a_classifier_is_trained_and_scored(name, pipeline, capsys):
    accuracy = run(name, "--pipeline", pipeline, "--ipc", "10", "--epochs", "2")
    assert 0 <= accuracy <= 1
    assert f"accuracy on 360 real test images: {100 * accuracy:.2f} %" in capsys.readouterr().out


def test_both_accuracies_of_scarce_real_data_are_printed(pipeline, capsys):
    accuracies = run("mix_with_real", "--pipeline", pipeline, "--steps", "30")
    assert list(accuracies) == ["only 100 real images", "with generated ones"]
    # A hundred real digits teach something in 30 steps; images of an untrained generator only get in the way.
    assert accuracies["only 100 real images"] > max(0.5, accuracies["with generated ones"])
    printed = re.findall(r"(\d+\.\d\d) % of 360 real test images", capsys.readouterr().out)
    assert printed == [f"{100 * accuracy:.2f}" for accuracy in accuracies.values()]


def test_the_first_block_of_the_readme_trains_on_what_is_shipped(monkeypatch, capsys):
    monkeypatch.chdir(EXAMPLES.parent)
    (language, code) = re.search(
        r"^```(\w+)\n(.*?)^```$", Path("README.md").read_text(), re.DOTALL | re.MULTILINE
    ).groups()
    assert language == "python"
    names: dict = {}
    exec(code, names)
    right = re.findall(r"^(.+): (\d+) of 20 generated images", capsys.readouterr().out, re.MULTILINE)
    assert [name for name, _ in right] == names["pipe"].class_names and len(right) == 10
    # Shirts and coats are mistaken for each other; the whole is far from the 20 of guessing.
    assert sum(int(count) for _, count in right) > 140
