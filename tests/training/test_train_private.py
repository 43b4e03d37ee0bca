import json
import shutil

import pytest
import torch
import train_private
from PIL import Image
from safetensors.torch import load_file

from dim_hf.data import ImageData
from dim_hf.pipelines import DiMPipeline
from dim_hf.privacy import matching_distance, release_statistics


def arguments(tmp_path, output_dir, *more):
    flags = ["--train_data_dir", tmp_path / "private", "--cache_dir", tmp_path / "cache", "--output_dir", output_dir]
    flags += ["--privacy_epsilon", 1, "--max_train_steps", 3, "--train_batch_size", 8, *more]
    return train_private.parse_args([str(flag) for flag in flags])


def write_images(folder):
    rng = torch.Generator().manual_seed(0)
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for i in range(6):
            pixels = torch.randint(256, (16, 16), dtype=torch.uint8, generator=rng)
            Image.fromarray(pixels.numpy()).save(folder / name / f"{i}.png")


def test_after_the_release_the_images_are_not_needed_and_decide_nothing(tmp_path):
    write_images(tmp_path / "private")
    first, second = tmp_path / "first", tmp_path / "second"
    train_private.main(arguments(tmp_path, first, "--dataloader_num_workers", 0))
    shutil.rmtree(tmp_path / "private")
    shutil.rmtree(tmp_path / "cache")
    shutil.copytree(first / "release", second / "release")
    train_private.main(arguments(tmp_path, second))

    weights = [load_file(next(folder.glob("generator/*.safetensors"))) for folder in (first, second)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0] | weights[1])
    grids = [next(folder.glob("samples/*.png")).read_bytes() for folder in (first, second)]
    assert grids[0] == grids[1]
    pipeline = DiMPipeline.from_pretrained(first)
    assert pipeline(ipc=1, output_type="pt").images.shape == (2, 1, 16, 16)
    assert list(pipeline.config.id2label.values()) == ["cat", "dog"]


def test_what_is_written_is_the_release_and_what_follows_from_it(tmp_path):
    write_images(tmp_path / "private")
    folder = tmp_path / "run"
    train_private.main(arguments(tmp_path, folder, "--dataloader_num_workers", 0))
    written = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    pipeline = {name for name in written if name.startswith("generator/")} | {"model_index.json", "pipeline.py"}
    release = {"release/statistics.json", "release/statistics.safetensors"}
    assert {name for name in written - pipeline if not name.startswith(".")} == release | {
        "options.json",
        "samples/step-0000003.png",
    }
    options = json.loads((folder / "options.json").read_text())
    assert options["privacy"]["epsilon"] == 1
    assert options["privacy"]["unit"] == "one image with its label"
    # Neither a digest of the images nor their exact number.
    assert not [name for name in options if "fingerprint" in name]


def test_another_budget_for_a_release_that_is_there_is_refused(tmp_path):
    write_images(tmp_path / "private")
    train_private.main(arguments(tmp_path, tmp_path / "run", "--dataloader_num_workers", 0))
    with pytest.raises(ValueError, match="A second release adds to the first"):
        train_private.main(arguments(tmp_path, tmp_path / "run", "--privacy_epsilon", 2))


class Sealed(ImageData):
    """Images that raise at any use once they are sealed."""

    def __getattribute__(self, name):
        if object.__getattribute__(self, "__dict__").get("sealed"):
            raise AssertionError(f"{name} of the private images was read after the release")
        return object.__getattribute__(self, name)


def test_no_later_stage_reads_the_images(tmp_path):
    images = torch.randint(256, (12, 1, 16, 16), dtype=torch.uint8)
    data = Sealed(images, torch.arange(12) % 2, ("cat", "dog"), "0" * 16)

    def read():
        return data

    statistics = train_private.released_once(tmp_path / "release", read, 1.0, 1e-5)
    object.__setattr__(data, "sealed", True)
    with pytest.raises(AssertionError, match="batch of the private images"):
        data.batch(torch.tensor([0]))
    # Released before, so this does not read them either.
    again = train_private.released_once(tmp_path / "release", read, 1.0, 1e-5)
    assert torch.equal(again.sums, statistics.sums)
    args = arguments(tmp_path, tmp_path / "run")
    generator = train_private.make_generator(statistics, seed=0)
    train_private.match(statistics, generator, steps=2, batch_size=8, learning_rate=1e-3, seed=0)
    train_private.save(statistics, generator, args, tmp_path / "run")


def test_matching_brings_the_generator_nearer_to_the_release():
    images = torch.zeros(2000, 1, 16, 16, dtype=torch.uint8)
    images[1000:, :, :8] = 255
    data = ImageData(images, torch.arange(2000) // 1000, ("dark", "half"), "0" * 16)
    statistics = release_statistics(data, 10, 1e-5)
    generator = train_private.make_generator(statistics, seed=0)
    labels = torch.arange(2).repeat_interleave(20)
    latents = torch.randn(40, generator.config.latent_dim, generator=torch.Generator().manual_seed(1))

    @torch.no_grad()
    def distance():
        features = statistics.features(generator.eval()(latents, labels).sample)
        return float(matching_distance(features.unflatten(0, (2, 20)), statistics.means()))

    before = distance()
    train_private.match(statistics, generator, steps=60, batch_size=20, learning_rate=3e-3, seed=0)
    assert distance() < before - 0.3
    half = generator(latents, labels).sample[20:]
    assert half[:, :, :8].mean() > half[:, :, 8:].mean() + 0.5


def test_any_number_of_classes_fits_the_batch():
    images = torch.zeros(60, 1, 8, 8, dtype=torch.uint8)
    data = ImageData(images, torch.arange(60) % 30, tuple(map(str, range(30))), "0" * 16)
    released = release_statistics(data, 1, 1e-5)
    generator = train_private.make_generator(released, seed=0)
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    train_private.match(released, generator, steps=2, batch_size=6, learning_rate=1e-3, seed=0)
    assert any(not torch.equal(before[name], value) for name, value in generator.state_dict().items())
