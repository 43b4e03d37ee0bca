"""What lies beside a pipeline."""

import pytest
import torch

from dim_hf.audit.folder import look_around
from dim_hf.models import DiMDiscriminator, DiMGenerator
from dim_hf.pipelines import DiMPipeline


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    DiMPipeline(DiMGenerator(2, 8, 1, 6, 4, (8,), (0,)), {0: "a", 1: "b"}).save_pretrained(tmp_path)
    (tmp_path / "README.md").write_text("a card")
    return tmp_path


def test_an_export_holds_nothing_else(folder):
    assert look_around(folder) == {"weights": [], "run": [], "other": [], "discriminator": None}


def test_what_a_run_leaves_is_not_shared_by_a_push(folder):
    (folder / "options.json").write_text("{}")
    DiMDiscriminator(2, 8, 1, (4, 4)).save_pretrained(folder / "checkpoint-10" / "discriminator")
    (folder / ".lock").touch()
    found = look_around(folder)
    assert found == {"weights": [], "run": ["checkpoint-10", "options.json"], "other": [], "discriminator": None}


@pytest.mark.parametrize("place", ["discriminator", "extra/critic"])
def test_a_discriminator_is_found_by_what_it_is(folder, place):
    DiMDiscriminator(2, 8, 1, (4, 4)).save_pretrained(folder / place)
    found = look_around(folder)
    assert found["discriminator"] == place
    assert found["weights"] == [f"{place}/diffusion_pytorch_model.safetensors"]


@pytest.mark.parametrize(
    "name", ["generator/ema.safetensors", "optimizer.bin", "old/state.pt", "pool.ckpt", "labeler/teacher.onnx"]
)
def test_weights_that_no_image_needs_are_found(folder, name):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"")
    assert look_around(folder)["weights"] == [name]


def test_other_files_are_told(folder):
    (folder / "faces").mkdir()
    (folder / "faces" / "me.png").write_bytes(b"")
    (folder / "notes.txt").write_text("")
    assert look_around(folder)["other"] == ["faces", "notes.txt"]


def test_a_config_that_is_not_json_is_not_a_discriminator(folder):
    (folder / "faces").mkdir()
    (folder / "faces" / "config.json").write_text("{")
    assert look_around(folder)["discriminator"] is None
