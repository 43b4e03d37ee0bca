import json

import pytest
import torch
from gap import main, nearest_generated, parse_args

from dim_hf.classifiers import build_classifier
from dim_hf.data import load_image_data
from dim_hf.evaluation.results import EVALUATION_FORMAT
from dim_hf.models import DiMGenerator


@pytest.fixture(scope="module")
def generator() -> DiMGenerator:
    torch.manual_seed(0)
    return DiMGenerator(
        num_classes=10, sample_size=8, out_channels=1, latent_dim=4, block_out_channels=[4], layers_per_block=[0]
    ).eval()


def test_each_image_is_replaced_by_its_nearest_of_the_same_class(generator):
    train = load_image_data().select(torch.arange(40))
    judge = build_classifier("convnet3", 10, 1, 8).eval()
    replaced = nearest_generated(judge, train, generator, candidates=1, seed=0)
    assert torch.equal(replaced.labels, train.labels) and replaced.class_names == train.class_names
    # With a single candidate all images of a class are that one.
    for label in range(10):
        own = replaced.images[train.labels == label]
        assert (own == own[:1]).all()


@pytest.mark.slow
def test_rows_of_a_run_are_measured_once(generator, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = load_image_data()
    options = {"train_split": "train", "max_train_samples": None, "validation_fraction": 0.3, "seed": 0}
    run = tmp_path / "run"
    generator.save_pretrained(run / "checkpoint-5" / "ema_generator")
    (run / "options.json").write_text(json.dumps(options | {"data_fingerprint": data.fingerprint}))
    flags = ["--run", str(run), "--steps", "5", "--epochs", "5", "--judge_steps", "200", "--per_class", "20"]
    args = parse_args([*flags, "--candidates", "20"])
    real, generated = main(args)
    assert real["job"]["step"] is None and generated["job"]["step"] == 5
    assert real["judge"] > 0.8 and real["agreement"] > 0.8 and real["recall"] > 0.5
    # Noise from an untrained generator covers nothing.
    assert generated["recall"] < 0.2 and generated["accuracy"] < 0.5
    assert len(generated["recall_by_class"]) == 10
    before = (tmp_path / "gap.jsonl").read_bytes()
    main(args)
    assert (tmp_path / "gap.jsonl").read_bytes() == before
    # Rows of another format are made again.
    (tmp_path / "gap.jsonl").write_text(before.decode().replace(f'"format": {EVALUATION_FORMAT}', '"format": 0'))
    assert [row["job"]["format"] for row in main(args)][-2:] == [EVALUATION_FORMAT] * 2
    (tmp_path / "gap.jsonl").write_bytes(before)
    # What real images reach depends on which of them are held out.
    changed = options | {"data_fingerprint": data.fingerprint, "validation_fraction": 0.2}
    (run / "options.json").write_text(json.dumps(changed))
    assert [row["job"]["step"] for row in main(args)] == [None, 5, None]
    assert generated["job"].keys() == real["job"].keys() - {"held_out"} | {"content"}
    (run / "options.json").write_text(json.dumps(options | {"data_fingerprint": "other"}))
    with pytest.raises(ValueError, match="is not what `--run`"):
        main(args)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--steps", "5", "7", "9"], "`--steps` names 7, 9, of which .* valid are the steps of checkpoint-5"),
        (["--output", "nowhere/gap"], "`--output` nowhere/gap cannot be written"),
    ],
)
def test_what_is_missing_is_named_before_data_are_read(tmp_path, monkeypatch, more, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run" / "checkpoint-5" / "ema_generator").mkdir(parents=True)
    (tmp_path / "run" / "options.json").write_text('{"max_train_samples": null}')
    with pytest.raises(OSError, match=message):
        main(parse_args(["--run", "run", "--steps", "5", "--dataset_name", "nowhere/at/all", *more]))
