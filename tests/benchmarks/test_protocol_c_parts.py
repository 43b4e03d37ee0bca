import json
import statistics

import pytest
import torch
from PIL import Image
from protocol_c import describe, main, parse_args
from transformers import ResNetConfig

from dim_hf import DiMPipeline
from dim_hf.classifiers.external import find_source, plan
from dim_hf.models import DiMGenerator


@pytest.mark.slow
def test_each_part_has_a_row_and_none_is_measured_twice(tmp_path):
    torch.manual_seed(0)
    generator = DiMGenerator(10, 8, 1, 4, 4, (8,), (0,)).eval()
    DiMPipeline(generator).save_pretrained(tmp_path / "run")
    flags = ["--pipeline", str(tmp_path / "run"), "--output_dir", str(tmp_path / "out"), "--epochs", "5", "--ipc", "2"]
    flags += ["--classifiers", "resnet10", "--batch_sizes", "10", "16"]
    rows = main(parse_args([*flags, "--seeds", "0"]))
    assert [(row["job"]["source"], row["job"]["batch_size"], row["job"]["colours"], row["steps"]) for row in rows] == [
        (source, batch, colours, steps)
        for colours in (True, False)
        for batch, steps in ((10, 10), (16, 5))
        for source in ("generated images", "real images, streamed")
    ]
    results = tmp_path / "out" / "results.jsonl"
    before = results.read_text()
    assert main(parse_args([*flags, "--seeds", "0"])) == rows and results.read_text() == before
    both = main(parse_args([*flags, "--seeds", "0", "1", "--batch_sizes", "10"]))
    assert results.read_text().startswith(before) and len(both) == 8
    table = (tmp_path / "out" / "protocol_c.md").read_text()
    pair = [row for row in both if row["job"]["source"] == "generated images" and row["job"]["colours"]]
    mean = 50 * sum(row["accuracy"] for row in pair)
    spread = statistics.stdev(100 * row["accuracy"] for row in pair)
    assert f"| resnet10 | generated images | 10 | 10 | changed | {mean:.1f} ± {spread:.1f} |" in table
    assert f"| resnet10 | generated images | 10 | 10 | changed | {100 * pair[0]['accuracy']:.1f} |" in describe(
        pair[:1], parse_args([*flags, "--seeds", "0"])
    )
    assert json.loads(before.splitlines()[0])["job"]["seed"] == 0


def test_data_of_other_classes_and_a_seed_given_twice_are_refused(tmp_path):
    DiMPipeline(DiMGenerator(10, 8, 1, 4, 4, (8,), (0,)), list("abcdefghij")).save_pretrained(tmp_path / "letters")
    DiMPipeline(DiMGenerator(3, 8, 1, 4, 4, (8,), (0,))).save_pretrained(tmp_path / "few")
    for name, message in (("letters", "class"), ("few", "digits has 10 classes; `--pipeline` generates 3")):
        with pytest.raises(ValueError, match=message):
            main(parse_args(["--pipeline", str(tmp_path / name), "--output_dir", str(tmp_path / "out")]))
    with pytest.raises(ValueError, match="each must be given once"):
        main(parse_args(["--pipeline", str(tmp_path / "few"), "--seeds", "1", "1"]))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--epochs", "0"], "`--epochs` is 0; it must be at least 1"),
        (["--batch_sizes", "10", "0"], "`--batch_sizes` is 0; it must be at least 1"),
        (["--batch_sizes", "10", "10"], "`--batch_sizes` names 10, 10; each must be given once"),
        (["--seeds", "-1"], "`--seeds` is -1; it must be at least 0"),
        (["--test_split", "train"], "`--test_split` is 'train', and `--train_split`, of the real images, 'train'"),
    ],
)
def test_a_wrong_argument_is_named(more, message):
    with pytest.raises(ValueError, match=message):
        parse_args(["--pipeline", "run", *more])


def test_a_test_split_that_holds_the_training_images_is_refused(tmp_path):
    DiMPipeline(DiMGenerator(2, 8, 1, 4, 4, (8,), (0,))).save_pretrained(tmp_path / "run")
    for name in ("a", "b"):
        (tmp_path / "data" / "train" / name).mkdir(parents=True)
        Image.new("L", (8, 8), ord(name)).save(tmp_path / "data" / "train" / name / "0.png")
    flags = ["--pipeline", str(tmp_path / "run"), "--dataset_name", str(tmp_path / "data")]
    flags += ["--cache_dir", str(tmp_path / "cache"), "--output_dir", str(tmp_path / "out"), "--epochs", "5"]
    # The same split by another name.
    with pytest.raises(ValueError, match="`--test_split` Train of .* holds the images of `--train_split` train"):
        main(parse_args([*flags, "--test_split", "Train"]))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_local_classifier_that_has_changed_is_measured_again(tmp_path):
    DiMPipeline(DiMGenerator(10, 8, 1, 4, 4, (8,), (0,))).save_pretrained(tmp_path / "run")
    model = tmp_path / "model"
    flags = ["--pipeline", str(tmp_path / "run"), "--output_dir", str(tmp_path / "out"), "--epochs", "5", "--ipc", "1"]
    flags += ["--batch_sizes", "10", "--seeds", "0", "--classifiers", "convnet3", f"transformers/{model}"]
    for width in (8, 4):
        find_source.cache_clear()
        plan.cache_clear()
        shape = {"hidden_sizes": [width, 8], "depths": [1, 1], "layer_type": "basic"}
        ResNetConfig(embedding_size=8, **shape).save_pretrained(model)
        assert len(main(parse_args(flags))) == 8
    jobs = [json.loads(line)["job"] for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    # Other names mean the same everywhere, and their keys are those of before.
    assert [job["classifier"] for job in jobs if "local" not in job] == ["convnet3"] * 4
    assert len(jobs) == 12 and len({job["local"] for job in jobs if "local" in job}) == 2


def test_a_folder_without_a_pipeline_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="`--pipeline` is .*, which holds no pipeline"):
        main(parse_args(["--pipeline", str(tmp_path)]))
