"""The examples, run as they stand on a tiny pipeline."""

import importlib.util
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

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


@pytest.mark.parametrize("name", ["pytorch_loop", "transformers_trainer", "mix_with_real"])
def test_photos_come_at_the_size_and_in_the_colours_of_the_pipeline(name, tmp_path):
    """Red and green ones: who mixes up channels and pixels learns nothing."""
    for split in ("train", "test"):
        for label, colour in enumerate(("red", "green")):
            (tmp_path / "photos" / split / colour).mkdir(parents=True)
            for i in range(20):
                pixels = np.random.default_rng(i).integers(0, 60, (12 + i, 20, 3), dtype=np.uint8)
                pixels[..., label] += 180
                Image.fromarray(pixels).save(tmp_path / "photos" / split / colour / f"{i}.png")
    torch.manual_seed(0)
    generator = DiMGenerator(2, 8, 3, latent_dim=4, block_out_channels=(4,), layers_per_block=(0,))
    DiMPipeline(generator, {0: "green", 1: "red"}).save_pretrained(tmp_path / "pipeline")
    more = ("--real", "20", "--steps", "20") if name == "mix_with_real" else ("--ipc", "10", "--epochs", "1")
    photos = str(tmp_path / "photos")
    found = run(name, "--pipeline", str(tmp_path / "pipeline"), "--dataset_name", photos, *more)
    if name == "mix_with_real":
        assert found["only 20 real images"] == 1


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
