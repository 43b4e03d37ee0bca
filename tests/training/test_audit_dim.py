"""The audit script, run for real on tiny generators of the digits: it finds what was planted, and nothing else."""

import json
import shutil
import threading
import time
from dataclasses import replace

import audit_dim
import audit_inputs
import audit_plan
import audit_shadows
import preparation
import pytest
import torch
import train_arguments
import train_dim
import train_labeler
from accelerate.state import AcceleratorState, GradientState
from audit_inputs import REPEATED
from audit_plan import AuditPlan, Speed, choose, extend
from audit_shadows import _aside, membership, save_half, shadow_words, train_words
from continuation import recorded
from filelock import FileLock

from dim_hf.audit.lira import IN, NEITHER, OUT
from dim_hf.data import ImageData, holdout, load_image_data, stratified_order
from dim_hf.data.image_data import copies_among
from dim_hf.files import lock_output_dir, read_json
from dim_hf.hub.push import export_repository
from dim_hf.machine import bfloat16_unit
from dim_hf.models import DiMDiscriminator, DiMGenerator
from dim_hf.pipelines import DiMPipeline
from dim_hf.privacy import mechanism


NETWORK = {"block_out_channels": [16], "layers_per_block": [1]}
FEW, ALL = 60, "digits"


@pytest.fixture(autouse=True, scope="module")
def float32():
    """What is chosen by itself on any processor, so that the tests are the same everywhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparation, "bfloat16_unit", lambda: None)
        yield


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with the decoded images, and a data set of few digits, which a generator learns by heart."""
    folder = tmp_path_factory.mktemp("audit")
    digits = load_image_data("digits", "train", cache_dir=folder / "cache")
    order = stratified_order(digits.labels, 0)
    digits = replace(digits, stored=digits.images, rows=None)
    save_half(digits.select(order[:FEW]), folder / "few" / "data" / "train.parquet")
    save_half(digits.select(order[FEW : FEW + 80]), folder / "few" / "data" / "test.parquet")
    return folder


def alone(program):
    # Accelerate keeps its settings for the life of a process.
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    return program()


def train(home, name, dataset, steps):
    for kind, more in (("generator", {"latent_dim": 16, "class_embed_dim": 8}), ("discriminator", {})):
        (home / f"{kind}.json").write_text(json.dumps(NETWORK | more))
    words = [
        "--dataset_name", str(dataset), "--output_dir", str(home / name), "--max_train_steps", str(steps),
        "--generator_config", str(home / "generator.json"), "--discriminator_config", str(home / "discriminator.json"),
        "--train_batch_size", "16", "--validation_epochs", "2", "--validation_steps", str(steps), "--augmentation",
        "--ema_decay", "0.9", "--report_to", "none", "--cache_dir", str(home / "cache"),
    ]  # fmt: skip
    alone(lambda: train_dim.main(train_dim.parse_args(words)))
    return home / name


@pytest.fixture(scope="module")
def leaky(home):
    """A run that has learnt 50 images by heart."""
    return train(home, "leaky", home / "few", 400)


@pytest.fixture(scope="module")
def sound(home):
    """A run that has seen 1,295 images briefly."""
    return train(home, "sound", ALL, 150)


def audit(home, pipeline, *more, dataset=ALL):
    words = ["--pipeline", str(pipeline), "--dataset_name", str(dataset), "--cache_dir", str(home / "cache")]
    words += ["--samples", "30", "--epochs", "5", *more]
    return alone(lambda: audit_dim.main(audit_dim.parse_args(words)))


def export(pipeline, folder):
    export_repository(DiMPipeline.from_pretrained(pipeline), folder)
    return folder


@pytest.mark.slow
def test_copies_are_found_in_what_was_learnt_by_heart_and_told_on_its_card(home, leaky, tmp_path, capsys):
    found = audit(
        home, leaky, "--tests", "copies", "--output_dir", str(tmp_path / "a"), "--export_dir", str(tmp_path / "x"),
        dataset=home / "few",
    )  # fmt: skip
    lean = found["copies"]["pixels"]["nearer_to_training"]
    # 50 of 130 images are of the training.
    assert lean["expected"] == pytest.approx(50 / 130, abs=0.05) and lean["share"] > 0.6 and lean["p"] < 0.001
    assert found["leak"] and found["membership"] is None
    assert "gives away training images" in capsys.readouterr().out
    assert read_json(tmp_path / "a" / "audit.json") == json.loads(json.dumps(found))
    card, page = (tmp_path / "x" / "README.md").read_text(), (tmp_path / "a" / "report.html").read_text()
    for text in ("of the generated images are nearest to a training image", "Distances by themselves prove little"):
        assert text in card and text in page
    assert "**no privacy guarantee**" in card and page.count("data:image/png;base64,") == 1
    # No shadow run was needed.
    assert {path.name for path in (tmp_path / "a").iterdir()} == {
        ".lock", ".made_by", "audit.json", "closest.png", "pipeline", "plan.json", "report.html",
    }  # fmt: skip


@pytest.mark.slow
def test_nothing_is_found_where_much_was_seen_briefly(home, sound, tmp_path, monkeypatch):
    monkeypatch.setattr(audit_dim, "measure_speed", lambda *_: Speed(step=1.0, measuring=0.0, beginning=0.0))
    # 600 steps in all are eight runs of half the length.
    found = audit(
        home, sound, "--output_dir", str(tmp_path / "a"), "--budget", "10", "--candidates", "100",
        "--inversion_steps", "5",
    )  # fmt: skip
    assert found["findings"] == [] and not found["leak"]
    assert (found["membership"]["shadows"], found["membership"]["steps"]) == (8, 75)
    assert set(found["membership"]["canaries"]) == {"mislabelled", "rare"}


@pytest.mark.slow
def test_a_private_run_gives_no_canary_away(home, tmp_path, monkeypatch):
    words = ["--output_dir", str(tmp_path / "run"), "--privacy_epsilon", "1", "--preset", "pico"]
    words += ["--max_train_steps", "40", "--cache_dir", str(home / "cache")]
    # The noise has no seed in use, and an audit has false alarms.
    rng = torch.Generator().manual_seed(0)
    monkeypatch.setattr(
        mechanism, "gaussian_noise", lambda shape, std: std * torch.randn(shape, generator=rng).double()
    )
    alone(lambda: train_dim.main(train_dim.parse_args(words)))
    monkeypatch.setattr(audit_dim, "measure_speed", lambda *_: Speed(step=1.0, measuring=0.0, beginning=0.0))
    found = audit(
        home, tmp_path / "run", "--budget", "4", "--candidates", "100", "--inversion_steps", "5", "--tests",
        "membership",
    )  # fmt: skip
    assert found["membership"]["shadows"] >= 4 and found["findings"] == [] and found["privacy"]["epsilon"] == 1
    assert set(found["membership"]["canaries"]) == {"mislabelled", "rare"}
    page = (tmp_path / "run" / "audit" / "report.html").read_text()
    assert "differential privacy with epsilon 1 and delta 1e-05" in page
    with pytest.raises(ValueError, match="is private and held none out; valid is --test_split"):
        audit(home, tmp_path / "run", "--validation")


@pytest.fixture(scope="module")
def everything(home, leaky):
    """The leaky run with all that could be shared by mistake: its discriminator, and a teacher."""
    folder = home / "everything"
    shutil.copytree(leaky, folder)
    (checkpoint,) = folder.glob("checkpoint-*")
    shutil.copytree(checkpoint / "discriminator", folder / "discriminator")
    words = ["--pipeline", str(folder), "--dataset_name", str(home / "few"), "--cache_dir", str(home / "cache")]
    words += ["--learning_rate", "0.011"]
    alone(lambda: train_labeler.main(train_labeler.parse_args(words)))
    return folder


@pytest.mark.slow
def test_the_teachers_of_shadow_runs_are_part_of_what_is_told_before(home, everything, tmp_path, monkeypatch):
    timed = []

    def time_teacher(folder, recipe):
        audit_plan.add_teacher(folder, recipe)
        epochs = recipe["num_train_epochs"]
        timed.append((DiMPipeline.from_pretrained(folder / "run").labeler is not None, epochs))
        return 600.0 + 60 * epochs

    monkeypatch.setattr(audit_plan, "time_teacher", time_teacher)
    # Twenty epochs, and what is not an epoch: half an hour each of two.
    with pytest.raises(ValueError, match=r"two shadow runs of a quarter of the steps take about 6\d; valid"):
        audit(home, everything, "--output_dir", str(tmp_path / "a"), "--budget", "1", dataset=home / "few")
    assert timed == [(True, 1), (True, 2)]


@pytest.mark.slow
def test_the_pools_of_shadow_runs_are_part_of_what_is_told_before(home, leaky, tmp_path, monkeypatch):
    options = read_json(leaky / "options.json") | {"pool_steps": 3000, "pool_snapshots": 20}
    shutil.copy(home / "few" / "data" / "train.parquet", tmp_path / "images.parquet")
    trained = []

    def train_shadow(words, folder):
        trained.append(int(words[words.index("--pool_steps") + 1]))
        alone(lambda: audit_shadows.train_shadow(words, folder))
        assert any((folder / "cache").rglob("*.safetensors"))
        time.sleep(0.1 * trained[-1])

    monkeypatch.setattr(audit_plan, "train_shadow", train_shadow)
    # At least what 3,000 steps of a tenth of a second take.
    assert audit_plan.time_pool(options, tmp_path, 0) > 280
    assert trained == [16, 48]


def test_a_teacher_is_trained_again_as_its_folder_says(home, everything, tmp_path, monkeypatch):
    pipe = DiMPipeline.from_pretrained(everything)
    record = read_json(everything / "labeler.json")
    precision = "bf16" if bfloat16_unit() else "no"
    usual = {"num_train_epochs": 20, "train_batch_size": 64, "learning_rate": 0.011, "mixed_precision": precision}
    assert audit_inputs.read_teacher_settings(str(everything), pipe) == (usual, True)
    # One of before its precision was recorded, and of another one.
    (tmp_path / "labeler.json").write_text(json.dumps({k: v for k, v in record.items() if k != "mixed_precision"}))
    assert audit_inputs.read_teacher_settings(str(tmp_path), pipe) == (usual | {"mixed_precision": "no"}, True)
    (tmp_path / "labeler.json").write_text(json.dumps(record | {"mixed_precision": 16}))
    with pytest.raises(ValueError, match="labeler.json has the precision 16; valid are 'no' and 'bf16'"):
        audit_inputs.read_teacher_settings(str(tmp_path), pipe)
    # The record of another teacher, and none.
    (tmp_path / "labeler.json").write_text(json.dumps(record | {"weights": "0" * 16}))
    assert audit_inputs.read_teacher_settings(str(tmp_path), pipe)[1] is False
    (tmp_path / "labeler.json").write_text(json.dumps(record | {"learning_rate": None}))
    with pytest.raises(
        ValueError, match="labeler.json is not as train_labeler.py writes it; learning_rate is missing"
    ):
        audit_inputs.read_teacher_settings(str(tmp_path), pipe)
    assert audit_inputs.read_teacher_settings(str(tmp_path), DiMPipeline(pipe.generator))[1] is None


def test_what_the_run_says_of_its_images_cannot_be_contradicted(home, sound):
    for flag, value in (("--train_split", "other"), ("--max_train_samples", "50")):
        with pytest.raises(ValueError, match=rf"`{flag}` is {value}, and the run in .* leave the flag out"):
            audit(home, sound, flag, value)


@pytest.mark.slow
def test_members_are_found_through_all_that_is_shared(home, everything, tmp_path, monkeypatch):
    monkeypatch.setattr(audit_dim, "measure_speed", lambda *_: Speed(step=1.0, measuring=0.0, beginning=0.0))
    output = tmp_path / "a"
    words = ["--output_dir", str(output), "--budget", "26.6", "--inversion_steps", "10"]
    # Another process has the first shadow run until this one has trained the second.
    lock_output_dir(output, "audit_dim.py").release()
    (output / "shadows").mkdir()
    lock = FileLock(output / "shadows" / ".000.lock", thread_local=False)
    lock.acquire()
    seen = []

    def release():
        while not (output / "shadows" / "001" / "signals.safetensors").is_file():
            time.sleep(0.1)
        seen.append((output / "shadows" / "000").exists())
        lock.release()

    waiting = threading.Thread(target=release, daemon=True)
    waiting.start()
    found = audit(home, everything, *words, dataset=home / "few")
    waiting.join()
    assert seen == [False]
    attacks = found["membership"]["pipeline"]
    assert set(attacks) == {
        "classifier", "nearest_pixels", "nearest_features", "inversion", "labeler", "discriminator",
    }  # fmt: skip
    assert set(found["membership"]["runs"]) == set(attacks) and found["leak"]
    # Nothing of the real images lies outside the folder, or is left in it.
    assert read_json(output / "shadows" / "000" / "run" / "labeler.json")["learning_rate"] == 0.011
    assert not list((output / "shadows").rglob("*.parquet")) and not list((output / "shadows").rglob("*.arrow"))
    # What was planted: the weights, the images, and the discriminator that does not belong there.
    for name in ("inversion", "nearest_pixels", "discriminator"):
        assert attacks[name]["auc_interval"][0] > 0.5, name
    # Shadow runs of half the length remember less, but their discriminators have seen each image often.
    assert found["membership"]["runs"]["discriminator"]["auc_interval"][0] > 0.6
    assert found["membership"]["canaries"]["rare"]["discriminator"]["auc"] > 0.9
    texts = " ".join(each["text"] for each in found["findings"])
    assert "The folder holds a discriminator (discriminator)" in texts
    assert "Training images of this pipeline are told from others through its weights" in texts
    # What is large is gone, and each run says whom it was trained on.
    shadow = output / "shadows" / "003"
    assert not [*shadow.glob("run/checkpoint-*"), *shadow.glob("images.parquet"), *shadow.glob("cache")]
    options = json.loads((shadow / "run" / "options.json").read_text())
    assert options["max_train_steps"] == 200 and options["augmentation"] == []
    # What is finished is not run again, and what is lost is; the figures are the same.
    (output / "audit.json").unlink()
    kept = (output / "shadows" / "002" / "signals.safetensors").stat().st_mtime_ns
    (shadow / "signals.safetensors").unlink()
    again = audit(home, everything, *words, dataset=home / "few")
    assert json.loads(json.dumps(again)) == json.loads(json.dumps(found))
    # Copies are told beside what is known of membership.
    copies = audit(home, everything, "--output_dir", str(output), "--tests", "copies", dataset=home / "few")
    assert copies["membership"] == json.loads(json.dumps(found["membership"]))
    assert (output / "shadows" / "002" / "signals.safetensors").stat().st_mtime_ns == kept


@pytest.mark.slow
def test_a_discriminator_in_an_export_is_found_without_any_attack(home, sound, tmp_path):
    folder = export(sound, tmp_path / "x")
    DiMDiscriminator(10, 8, 1, (4, 4)).save_pretrained(folder / "discriminator")
    found = audit(home, folder, "--tests", "copies", "--output_dir", str(tmp_path / "a"))
    assert found["leak"] and [each["level"] for each in found["findings"]] == ["leak"]
    assert "discriminator" in found["findings"][0]["text"]
    shutil.rmtree(folder / "discriminator")
    assert not audit(home, folder, "--tests", "copies", "--output_dir", str(tmp_path / "b"))["findings"]


# Bad input: one message, before any work.


def tiny(folder, classes=10, size=8, channels=1, seed=0, names=None):
    torch.manual_seed(seed)
    names = names or dict(enumerate(map(str, range(classes))))
    DiMPipeline(DiMGenerator(classes, size, channels, 6, 4, (8,), (0,)), names).save_pretrained(folder)
    return folder


def run_options(home, folder, **changes):
    """The folder of a run, as far as the checks of an audit read it."""
    digits = load_image_data("digits", "train", cache_dir=home / "cache")
    options = {"train_split": "train", "max_train_samples": None, "data_fingerprint": digits.fingerprint,
               "validation_fraction": 0.1, "seed": 0, "dataset_name": "digits", "mixed_precision": "no"}  # fmt: skip
    (folder / "options.json").write_text(json.dumps(options | changes))
    return folder


@pytest.mark.parametrize(
    "shape, message",
    [
        ({"names": dict(enumerate("abcdefghij"))}, r"`--dataset_name` digits has the classes .*generates a, b"),
        ({"classes": 3}, r"`--dataset_name` digits has the classes 0, 1, .*generates 0, 1, 2"),
    ],
)
def test_a_pipeline_of_other_images_is_refused(home, tmp_path, shape, message):
    folder = tiny(tmp_path / "p", **shape)
    with pytest.raises(ValueError, match=message):
        audit(home, folder, "--tests", "copies")
    assert not (folder / "audit").exists()


def test_images_have_the_size_and_channels_of_the_pipeline(home, tmp_path):
    # As evaluate_dim.py reads them.
    found = audit(home, tiny(tmp_path / "p", size=16, channels=3), "--tests", "copies")
    assert found["data"]["train"] == 1437 and found["copies"]["generated"] == 300


@pytest.mark.parametrize(
    "words, message",
    [
        (["--tests", "copies", "--test_split", "train"], "the split that the pipeline was trained on"),
        ([], "`--tests` membership needs options.json"),
        (["--tests", "copies", "--validation"], "`--validation` needs options.json"),
        (["--tests", "copies", "copies"], "each must be given once"),
        (["--tests", "copies", "--classifier", "convnet9"], "convnet9"),
        (["--tests", "copies", "--test_split", "valid"], "valid"),
    ],
)
def test_settings_that_do_not_fit_are_refused(home, tmp_path, words, message):
    folder = tiny(tmp_path / "p")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        audit(home, folder, *words)
    assert not (folder / "audit").exists()


@pytest.mark.parametrize(
    "words, message",
    [
        (["--tests", "copies", "--budget", "5"], "`--budget` has no effect without membership"),
        (["--tests", "copies", "--candidates", "50"], "`--candidates` has no effect without membership"),
        (["--validation", "--test_split", "x"], "`--test_split` has no effect with `--validation`"),
        (["--hub_model_id", "me/x"], "`--hub_model_id` has no effect without `--push_to_hub`"),
        (["--train_data_dir", "x", "--revision", "y"], "`--revision` has no effect with `--train_data_dir`"),
    ],
)
def test_flags_without_effect_are_refused(words, message):
    with pytest.raises(ValueError, match=message):
        audit_dim.parse_args(words)


@pytest.mark.parametrize("words", [["--budget", "0"], ["--tests", "all"], ["--samples", "1"], ["--candidates", "9"]])
def test_values_that_are_not_valid_are_refused(words, capsys):
    with pytest.raises(SystemExit):
        audit_dim.parse_args(words)
    assert words[0] in capsys.readouterr().err


def test_the_data_must_be_that_of_the_run(home, tmp_path):
    folder = run_options(home, tiny(tmp_path / "p"))
    with pytest.raises(ValueError, match="`--tests` membership needs .*options.json as .* lacks adversarial_steps, "):
        audit(home, folder)
    run_options(home, folder, data_fingerprint="0123", **dict.fromkeys(REPEATED))
    with pytest.raises(ValueError, match=r"`--dataset_name` digits is not the data that .* was trained on"):
        audit(home, folder)
    with pytest.raises(ValueError, match="`--test_split` is 'train', which the pipeline was trained on"):
        audit(home, folder, "--test_split", "train")


def test_a_held_out_split_that_repeats_the_training_images_is_refused(home, tmp_path):
    digits = load_image_data("digits", "train", cache_dir=home / "cache")
    digits = replace(digits, stored=digits.images, rows=None)
    data = tmp_path / "d" / "data"
    save_half(digits, data / "train.parquet")
    # The same images in another order are not recognised by their fingerprint.
    save_half(digits.select(torch.arange(len(digits)).flip(0)), data / "test.parquet")
    folder = tiny(tmp_path / "p")
    with pytest.raises(ValueError, match="all 1,437 images of `--test_split` test are among the training images"):
        audit(home, folder, "--tests", "copies", dataset=tmp_path / "d")
    assert not (folder / "audit").exists()


def test_copies_are_found_in_every_pixel():
    pixels = torch.arange(8, dtype=torch.uint8)[:, None, None, None].repeat(1, 1, 8, 8)
    data = ImageData(pixels, torch.zeros(8, dtype=torch.int64), ("a",), "f")
    copies = copies_among(data.select(torch.arange(3, 8)), data.select(torch.arange(5)))
    assert copies.tolist() == [True, True, False, False, False]
    pixels = pixels.clone()
    pixels[3, 0, 7, 7] += 1
    changed = ImageData(pixels, data.labels, ("a",), "g")
    assert copies_among(data.select(torch.arange(3, 8)), changed).tolist() == [False, True, True, True, True]


def test_the_folder_of_another_audit_is_refused(home, tmp_path):
    folder, output = tiny(tmp_path / "p"), tmp_path / "a"
    words = ("--tests", "copies", "--output_dir", str(output))
    first = audit(home, folder, *words)
    with pytest.raises(FileExistsError, match=r"holds another audit \(seed 0, now 1\)"):
        audit(home, folder, *words, "--seed", "1")
    with pytest.raises(FileExistsError, match=r"holds another audit \(weights '\w+', now '\w+'\)"):
        audit(home, tiny(tmp_path / "q", seed=1), *words)
    assert read_json(output / "audit.json") == json.loads(json.dumps(first))
    DiMDiscriminator(10, 8, 1, (4, 4)).save_pretrained(folder / "discriminator")
    with pytest.raises(FileExistsError, match=r"holds another audit \(discriminator None, now '\w+'\)"):
        audit(home, folder, *words)
    shutil.rmtree(folder / "discriminator")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "report.html").write_text("mine")
    with pytest.raises(FileExistsError, match="holds report.html, which audit_dim.py would overwrite"):
        audit(home, folder, "--tests", "copies", "--output_dir", str(tmp_path / "mine"))


def test_several_processes_of_a_launcher_are_refused(home, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="runs in one process; start it several times"):
        audit_dim.check(audit_dim.parse_args(["--pipeline", str(tiny(tmp_path / "p"))]))


# The plan.

SPEED = Speed(step=1.0, measuring=10.0, beginning=5.0)


@pytest.mark.parametrize(
    "budget, shadows, share",
    [
        # 115 seconds each, and 10 for the pipeline.
        (10 + 8 * 115, 8, 1.0), (10 + 11 * 115, 10, 1.0), (10 + 1000 * 115, 64, 1.0),
        (10 + 8 * 65, 8, 0.5), (10 + 8 * 40, 8, 0.25), (10 + 4 * 40, 4, 0.25), (10 + 2 * 60, 2, 0.45),
    ],
)  # fmt: skip
def test_a_budget_chooses_runs_and_steps(budget, shadows, share):
    plan = choose(budget, SPEED, steps=100)
    assert (plan.shadows, pytest.approx(plan.share)) == (shadows, share) and plan.seconds <= budget + 1e-6


def test_a_budget_for_less_than_two_runs_is_refused_with_what_is_needed():
    with pytest.raises(ValueError, match=r"`--budget` is 1 minutes.*take about 2; valid is that or more"):
        choose(60, SPEED, steps=100)
    assert choose(120, SPEED, steps=100).shadows == 2


def test_a_larger_budget_adds_runs_and_a_smaller_one_takes_none_away():
    plan = {"shadows": 8, "share": 0.5, "speed": vars(SPEED)}
    assert extend(plan, 10 + 13 * 65, 100) == AuditPlan(12, 0.5, 10 + 12 * 65)
    assert extend(plan, 1, 100).shadows == 8


@pytest.mark.parametrize("given", [[], ["--augmentation", "--storage", "int4", "--rounded_steps", "20"],
                                   ["--match_loss", "energy=2", "features", "--max_match_steps", "40"]])  # fmt: skip
def test_a_shadow_run_has_the_settings_of_the_run(given, tmp_path):
    args = train_arguments.parse_args([*given, "--max_train_steps", "100", "--seed", "7", "--validation_epochs", "3"])
    args.augmentation = args.augmentation or []
    options = json.loads(json.dumps(recorded(args) | {
        "generator_config": {"latent_dim": 8}, "discriminator_config": {}, "num_processes": 2,
        "adversarial_steps": 100, "mixed_precision": "no",
    }))  # fmt: skip
    words = shadow_words(options, tmp_path, options["max_match_steps"], 0.5, number=3, seed=0)
    shadow = recorded(train_arguments.parse_args(words))
    changed = {name for name in shadow if shadow[name] != options[name]} - {"given"}
    assert changed <= {
        "dataset_name", "output_dir", "cache_dir", "dataloader_num_workers", "report_to", "seed", "max_train_steps",
        "max_match_steps", "train_batch_size", "resume_from_checkpoint", "checkpoints_total_limit", "rounded_steps",
        "generator_config", "discriminator_config",
    }  # fmt: skip
    assert shadow["max_train_steps"] == 50 and shadow["max_match_steps"] == options["max_match_steps"] // 2
    assert shadow["rounded_steps"] == options["rounded_steps"] // 2 and shadow["train_batch_size"] == 128
    assert read_json(tmp_path / "generator_config.json") == {"latent_dim": 8}
    other = shadow_words(options, tmp_path, 0, 0.5, number=4, seed=0)
    assert other[other.index("--seed") + 1] != str(shadow["seed"])


def test_membership_is_what_the_run_reads_back(home, tmp_path):
    digits = load_image_data("digits", "train", cache_dir=home / "cache")
    positions = torch.arange(0, 600, 3)
    data = replace(digits, stored=digits.images, rows=None).select(positions)
    save_half(data, tmp_path / "images.parquet")
    options = {"train_batch_size": 8, "num_processes": 1, "generator_config": {}, "discriminator_config": {}}
    words = train_words(options, tmp_path, adversarial=1, matching=0, seed=5)
    args = train_arguments.parse_args(words)
    read = load_image_data(args.dataset_name, args.train_split, cache_dir=args.cache_dir)
    assert torch.equal(read.images, data.images) and torch.equal(read.labels, data.labels)
    assert read.class_names == digits.class_names
    trained, kept = holdout(read, 0.1, 5)
    found = membership(data, positions, 0.1, 5, len(digits))
    assert torch.equal(digits.images[found == IN], trained.images)
    assert torch.equal(digits.images[found == NEITHER], kept.images)
    assert int((found == OUT).sum()) == len(digits) - 200


def test_messages_of_a_shadow_run_are_kept_and_its_interruption_is_one(tmp_path, capsys):
    def interrupted():
        print("step 3")
        raise SystemExit(130)

    with pytest.raises(KeyboardInterrupt):
        _aside(interrupted, tmp_path)
    assert (tmp_path / "log.txt").read_text() == "step 3\n" and capsys.readouterr().out == ""
