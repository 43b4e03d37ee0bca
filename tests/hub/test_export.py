"""An export: what a push would upload, in a folder, whole and nobody else's."""

import json

import pytest
import torch
from huggingface_hub import ModelCard

from dim_hf.hub.card import command
from dim_hf.hub.push import EXPORTED, check_export, export_repository
from dim_hf.models import DiMGenerator
from dim_hf.pipelines import DiMPipeline
from dim_hf.weights import weights_digest


def build_pipeline(seed=0):
    torch.manual_seed(seed)
    pipeline = DiMPipeline(DiMGenerator(3, 8, 1, 6, 4, (8,), (0,)), {0: "cat", 1: "dog", 2: "owl"})
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_an_export_loads_and_its_card_is_of_its_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pipeline = build_pipeline()
    export_repository(pipeline, "distilled/animals")
    assert {path.name for path in (tmp_path / "distilled/animals").iterdir()} <= {*EXPORTED}
    loaded = DiMPipeline.from_pretrained("distilled/animals")
    assert weights_digest(loaded) == weights_digest(pipeline)
    card = ModelCard.load("distilled/animals/README.md")
    assert f"<!-- results of weights {weights_digest(pipeline)} -->" in card.text
    assert 'DiMPipeline.from_pretrained("distilled/animals")' in card.text
    assert card.text.startswith("\n# animals\n") or "\n# animals\n" in card.text


def test_a_card_names_no_path_of_the_machine(tmp_path):
    export_repository(build_pipeline(), tmp_path / "animals")
    assert str(tmp_path) not in (tmp_path / "animals" / "README.md").read_text()


def test_an_export_takes_the_place_of_an_older_one_and_keeps_the_words_of_its_card(tmp_path):
    folder = tmp_path / "animals"
    export_repository(build_pipeline(0), folder)
    card = folder / "README.md"
    card.write_text(card.read_text().replace("## Quick start", "Photographed by me.\n\n## Quick start"))
    export_repository(build_pipeline(1), folder)
    digest = weights_digest(DiMPipeline.from_pretrained(folder))
    assert digest == weights_digest(build_pipeline(1))
    assert "Photographed by me." in card.read_text() and f"weights {digest}" in card.read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["animals"]


@pytest.mark.parametrize("name", ["options.json", "notes.txt", "checkpoint-10"])
def test_a_folder_that_holds_anything_else_is_refused_and_left(tmp_path, name):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_text("mine")
    with pytest.raises(FileExistsError, match=f"holds {name}, which is not of an export"):
        export_repository(build_pipeline(), tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == [name]


@pytest.mark.parametrize("name", ["pipeline.py", "samples.png", "generator/config.json"])
def test_files_named_like_those_of_an_export_are_nobody_elses(tmp_path, name):
    (tmp_path / "mine" / "generator").mkdir(parents=True)
    (tmp_path / "mine" / name).write_text("mine")
    with pytest.raises(FileExistsError, match="holds .*, which is not of an export"):
        export_repository(build_pipeline(), tmp_path / "mine")
    assert (tmp_path / "mine" / name).read_text() == "mine"


def test_a_variant_in_an_export_is_not_removed(tmp_path):
    export_repository(build_pipeline(), tmp_path / "animals")
    build_pipeline().save_pretrained(tmp_path / "animals", variant="small", storage="int4")
    with pytest.raises(FileExistsError, match=r"holds generator/diffusion_pytorch_model\.small\.safetensors, which"):
        export_repository(build_pipeline(), tmp_path / "animals")
    assert DiMPipeline.from_pretrained(tmp_path / "animals", variant="small").generator.storage == "int4"


def test_a_file_is_refused(tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(FileExistsError, match="is a file"):
        export_repository(build_pipeline(), tmp_path / "run")


def test_the_command_on_a_card_is_the_one_that_was_given_without_paths():
    options = {
        "given": ["augmentation", "dataset_name", "generator_config", "match_loss", "max_train_steps", "output_dir"],
        "dataset_name": "/home/me/photos",
        "output_dir": "out/x",
        "max_train_steps": 40,
        "match_loss": "energy=2.0 features",
        "augmentation": [],
        "generator_config": {"latent_dim": 3},
        "learning_rate": 0.1,
    }
    assert command(json.loads(json.dumps(options)), "cats") == (
        "accelerate launch training/train_dim.py --augmentation --dataset_name ... --generator_config ... "
        "--match_loss energy=2.0 features --max_train_steps 40 --output_dir out/cats"
    )
    assert "--dataset_name org/photos" in command(options | {"dataset_name": "org/photos"}, "cats")
    folder = {"given": ["train_data_dir"], "train_data_dir": "hospital_x/patients/train"}
    assert (
        command(folder, "cats") == "accelerate launch training/train_dim.py --train_data_dir ... --output_dir out/cats"
    )


def test_an_export_that_would_hold_the_figures_is_refused_before_them(tmp_path):
    export_repository(build_pipeline(), tmp_path / "animals")
    check_export(tmp_path / "animals", tmp_path / "evaluation")
    for output_dir in (tmp_path / "animals" / "evaluation", tmp_path / "animals"):
        with pytest.raises(FileExistsError, match="the export folder .*animals would hold `--output_dir`"):
            check_export(tmp_path / "animals", output_dir)
