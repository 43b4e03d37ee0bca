"""Model cards: what is on them, what never is, and what a later push changes of them."""

import json
from dataclasses import asdict, replace

import pytest
import torch
from huggingface_hub import ModelCard

from dim_hf.evaluation.tables import Row, results_table, write_report
from dim_hf.hub.card import DIGITS, describe_data, local_or_hub, model_card
from dim_hf.models import DiMGenerator, DiMLabeler
from dim_hf.pipelines import DiMPipeline
from dim_hf.privacy import guarantee_of
from dim_hf.weights import weights_digest


ROWS = [
    Row(
        "generated images", "convnet3", 10, 2000, 100000, 2**20, 10, [0.85, 0.86, 0.87], 61.4, "B", "hard", True, False
    ),
    Row(
        "real images, streamed",
        "convnet3",
        10,
        2000,
        100000,
        2**20,
        10,
        [0.9, 0.9, 0.9],
        61.4,
        "B",
        "hard",
        True,
        True,
    ),
    Row("generated images", "resnet18", 10, 2000, 100000, 2**20, 10, [0.5], 61.4, "B", "hard", True, False),
]
OPTIONS = {"dataset_name": "digits", "learning_rate": 0.5, "pool": ["a|b"], "seed": 0, "max_grad_norm": None}


def make_pipeline(seed=0, names=("cat", "dog", "a `long` name"), labeler=None):
    torch.manual_seed(seed)
    return DiMPipeline(DiMGenerator(len(names), 8, 1, 6, 4, (8,), (0,)), dict(enumerate(names)), labeler)


def save_run(folder, seed=0, names=("cat", "dog", "a `long` name"), **options):
    make_pipeline(seed, names).save_pretrained(folder)
    (folder / "options.json").write_text(json.dumps(OPTIONS | options))
    (folder / "environment.json").write_text('{"dim_hf": "0.1.0"}')
    return DiMPipeline.from_pretrained(folder)


def evaluate(pipeline, folder, rows=ROWS, **options):
    folder.mkdir(parents=True, exist_ok=True)
    details = {"options": OPTIONS | {"test_split": "test"} | options, "weights": weights_digest(pipeline)}
    write_report(folder, rows, "Protocol B, in words.", details)


def part(card, name):
    return card.text.partition(f"<!-- {name} of ")[2].partition(f"<!-- end of {name} -->")[0]


def test_card_of_an_evaluated_run(tmp_path):
    pipeline = save_run(tmp_path / "run")
    evaluate(pipeline, tmp_path / "run" / "evaluation")
    card = model_card(pipeline, "me/cats")
    assert results_table(ROWS) in part(card, "results") and "Protocol B, in words." in part(card, "results")
    assert r'| `pool` | `["a\|b"]` |' in part(card, "training") and "max_grad_norm" not in card.text
    assert "**Licence of the data set:** cc-by-4.0" in part(card, "training")
    first, second = card.data.eval_results
    assert (first.metric_value, first.metric_args["std"], first.metric_args["seeds"]) == (0.86, 0.01, 3)
    assert (second.metric_value, second.metric_args["classifier"]) == (0.5, "resnet18")
    # One seed tells of no spread.
    assert second.metric_args["seeds"] == 1 and "std" not in second.metric_args
    assert first.dataset_type == "digits" and first.dataset_split == "test"
    assert card.data.model_name == "cats" and "\n# cats\n" in card.text
    assert f"{pipeline.generator.num_parameters():,} parameters" in card.text
    assert ModelCard(str(card)).data.to_dict() == card.data.to_dict()


def test_quick_starts_on_the_card_are_valid_python(tmp_path):
    for code in model_card(make_pipeline(), "me/cats").text.split("```python\n")[1:]:
        compile(code.partition("```")[0], "card", "exec")


def test_card_of_a_pipeline_that_nothing_is_known_of():
    card = model_card(make_pipeline(), "me/cats")
    assert "Not measured yet" in part(card, "results") and "were not recorded" in part(card, "training")
    assert card.data.eval_results is None and card.data.license is None and card.data.datasets is None


def test_no_token_and_no_path_of_the_machine(tmp_path, monkeypatch):
    (tmp_path / "nets" / "beside").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    judge = f"transformers/{tmp_path}/nets/of@home"
    secrets = {
        "hub_token": "hf_secret",
        "output_dir": str(tmp_path),
        "cache_dir": "~/mine",
        "new_option": str(tmp_path),
        "new_list": ["a", str(tmp_path)],
        "validation_classifier": judge,
        "pool": ["convnet3@2", f"{judge}:pretrained=true", f"{judge}@3", "transformers/nets/beside"],
    }
    pipeline = save_run(tmp_path / "run", dataset_name=str(tmp_path / "data"), **secrets)
    rows = [replace(ROWS[0], classifier=judge), replace(ROWS[2], classifier="transformers/microsoft/resnet-18")]
    evaluate(pipeline, tmp_path / "run" / "evaluation", rows, dataset_name=str(tmp_path / "data"), **secrets)
    card = model_card(pipeline, "me/cats", token="hf_secret")
    first, second = card.data.eval_results
    assert first.metric_args["classifier"] == "transformers/(local folder)"
    assert second.metric_args["classifier"] == "transformers/microsoft/resnet-18"
    assert "| transformers/(local folder) " in part(card, "results")
    assert '| `validation_classifier` | `"transformers/(local folder)"` |' in part(card, "training")
    pool = ["convnet3@2"] + [f"transformers/(local folder){rest}" for rest in (":pretrained=true", "@3", "")]
    assert f"| `pool` | `{json.dumps(pool)}` |" in part(card, "training")
    for secret in ("hf_secret", str(tmp_path), "~/mine", "new_option", "new_list", "nets", "home"):
        assert secret not in str(card), secret


def test_local_data_is_told_from_that_of_the_hub_anywhere(tmp_path, monkeypatch):
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    local, hub = local_or_hub("a/b"), local_or_hub("c/d")
    monkeypatch.chdir("/")
    assert describe_data({"dataset_name": local}) == (None, "a labelled image data set of a local folder")
    assert describe_data({"dataset_name": hub, "dataset_config_name": "small"})[0] == "c/d"
    assert describe_data({"dataset_name": hub, "train_data_dir": "x"})[0] is None
    assert local_or_hub("digits") == "digits"


def test_a_card_is_the_same_when_written_again(tmp_path):
    pipeline = save_run(tmp_path / "run")
    evaluate(pipeline, tmp_path / "run" / "evaluation")
    card = str(model_card(pipeline, "me/cats"))
    assert str(model_card(pipeline, "me/cats", existing=ModelCard(card))) == card
    # A pipeline of the same weights that knows nothing of its training takes nothing away.
    assert str(model_card(make_pipeline(), "me/cats", existing=ModelCard(card))) == card


def test_a_card_that_was_edited_keeps_its_words_and_metadata(tmp_path):
    pipeline = save_run(tmp_path / "run")
    edited = str(model_card(pipeline, "me/cats")).replace("## Intended use", "## My own words\n\n## Intended use")
    edited = edited.replace("license: cc-by-4.0", "license: mit\nwidget: mine").replace("- dim\n", "- my-tag\n- dim\n")
    evaluate(pipeline, tmp_path / "elsewhere")
    card = model_card(pipeline, "me/cats", existing=ModelCard(edited), evaluation_dir=tmp_path / "elsewhere")
    assert "## My own words" in card.text and results_table(ROWS) in card.text and "Not measured" not in card.text
    assert card.data.license == "mit" and card.data.widget == "mine" and len(card.data.eval_results) == 2
    assert card.data.tags[0] == "my-tag" and len(set(card.data.tags)) == len(card.data.tags)


def test_results_of_other_weights_leave_the_card(tmp_path):
    pipeline = save_run(tmp_path / "run")
    evaluate(pipeline, tmp_path / "run" / "evaluation")
    card = model_card(pipeline, "me/cats")
    other = save_run(tmp_path / "run", seed=1, learning_rate=0.25)
    again = model_card(other, "me/cats", existing=card)
    assert "Not measured yet" in part(again, "results") and again.data.eval_results is None
    assert "| `learning_rate` | `0.25` |" in part(again, "training")
    with pytest.raises(ValueError, match="`evaluation_dir` .*evaluation is an evaluation of other weights"):
        model_card(other, "me/cats", evaluation_dir=tmp_path / "run" / "evaluation")
    with pytest.raises(ValueError, match="`evaluation_dir` .*nowhere holds no metrics.json"):
        model_card(other, "me/cats", evaluation_dir=tmp_path / "nowhere")


def test_what_a_card_says_of_other_weights_and_data_is_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    pipeline = save_run(tmp_path / "run", dataset_name="some/animals")
    evaluate(pipeline, tmp_path / "run" / "evaluation", dataset_name="some/animals")
    edited = str(model_card(pipeline, "me/cats")).replace("## Intended use", "## My own words\n\n## Intended use")
    edited = edited.replace("tags:\n", "license: mit\ntags:\n- my-tag\n")
    first = ModelCard(edited)
    assert first.data.datasets == ["some/animals"] and "'cat'" in part(first, "start")

    # The same data set, other weights: what was said of the data stays.
    again = model_card(save_run(tmp_path / "again", 1, dataset_name="some/animals"), "me/cats", existing=first)
    assert again.data.license == "mit" and again.data.datasets == ["some/animals"] and again.data.tags[0] == "my-tag"
    assert "**Licence of the data set:** mit" in part(again, "training")

    # Another one, with more classes.
    names = ("Coat", "Bag", "Shirt", "Boot")
    other = save_run(tmp_path / "other", names=names)
    card = model_card(other, "me/cats", existing=first)
    assert "## My own words" in card.text and card.data.tags[0] == "my-tag"
    assert f"A generator that stores {DIGITS}.\n" in part(card, "model") and "in 4 classes" in part(card, "model")
    assert "Classes: 0 Coat, 1 Bag, 2 Shirt, 3 Boot.\n" in part(card, "model")
    assert f"{other.generator.num_parameters():,} parameters" in part(card, "model")
    assert "class_labels=['Coat']" in part(card, "start")
    assert "**Licence of the data set:** cc-by-4.0" in part(card, "training") and card.data.license == "cc-by-4.0"
    for outdated in ("dog", "animals", "mit\n"):
        assert outdated not in card.text, outdated
    assert card.data.datasets is None and card.data.eval_results is None
    assert str(model_card(other, "me/cats", existing=card)) == str(card)

    # Nothing is known of the new data, so nothing is claimed.
    unknown = model_card(make_pipeline(2), "me/cats", existing=first)
    assert unknown.data.license is None and unknown.data.datasets is None
    assert "animals" not in unknown.text and "**Licence of the data set:** not known" in unknown.text


def test_the_licence_of_local_data_stays_with_its_classes(tmp_path):
    local = {"dataset_name": str(tmp_path)}
    first = str(model_card(save_run(tmp_path / "a", **local), "me/cats")).replace("tags:\n", "license: mit\ntags:\n")
    same = model_card(save_run(tmp_path / "b", seed=1, **local), "me/cats", existing=ModelCard(first))
    other = model_card(save_run(tmp_path / "c", 1, ("Coat", "Bag"), **local), "me/cats", existing=ModelCard(first))
    assert (same.data.license, other.data.license) == ("mit", None)


def test_a_teacher_and_its_code_are_on_the_card():
    without = model_card(make_pipeline(), "me/cats")
    card = model_card(make_pipeline(labeler=DiMLabeler(3, 8, 1, width=4)), "me/cats", existing=without)
    assert "labeler" not in without.text
    assert "`pipeline.py`, `generator/generator_dim.py` and\n`labeler/labeler_dim.py`" in part(card, "start")
    assert "`labeler/` holds a teacher" in part(card, "model")
    # The results are of the generator, which is the same.
    assert part(card, "results") == part(without, "results") != ""


def test_a_card_of_another_kind_keeps_its_text_and_an_empty_one_gets_ours():
    foreign = model_card(make_pipeline(), "me/cats", existing=ModelCard("---\nlicense: mit\n---\n# Mine\n"))
    assert foreign.text == "# Mine\n"
    assert foreign.data.license == "mit" and foreign.data.library_name == "diffusers"
    from_the_web_page = model_card(make_pipeline(), "me/cats", existing=ModelCard("---\nlicense: mit\n---\n"))
    assert "## Quick start" in from_the_web_page.text and from_the_web_page.data.license == "mit"


def test_a_private_run_states_its_guarantee_in_text_and_metadata(tmp_path):
    privacy = asdict(guarantee_of(1, 1e-5))
    card = model_card(save_run(tmp_path, privacy=privacy, privacy_epsilon=1.0), "me/x")
    training = part(card, "training")
    assert "differential privacy with epsilon 1 and delta 1e-05. Unit: one image with its label" in training
    assert "sensitivity of 1 together and noise of standard deviation 3.731" in training
    assert "does not cover the results above" in training
    assert "labeler" not in training
    assert card.data.to_dict()["differential_privacy"] == {
        "epsilon": 1,
        "delta": 1e-5,
        "unit": "one image with its label",
        "neighbours": "add or remove one",
        "mechanism": "Gaussian, one release; noise from the operating system",
    }
    assert "no privacy guarantee" not in card.text


def test_other_runs_say_that_there_is_no_guarantee(tmp_path):
    for card in (model_card(save_run(tmp_path), "me/x"), model_card(make_pipeline(), "me/x")):
        assert "- **Privacy:** no privacy guarantee" in part(card, "training")
        assert "differential_privacy" not in card.data.to_dict()


def test_a_guarantee_does_not_outlive_the_generator_that_had_it(tmp_path):
    private = save_run(tmp_path / "private", privacy=asdict(guarantee_of(1, 1e-5)))
    card = model_card(private, "me/x")
    other = model_card(save_run(tmp_path / "other", seed=1), "me/x", existing=card)
    assert "no privacy guarantee" in part(other, "training")
    assert "differential_privacy" not in other.data.to_dict()
    # The same weights, of whose run nothing is known here.
    again = model_card(make_pipeline(), "me/x", existing=card)
    assert "differential privacy with epsilon 1" in part(again, "training")
    assert again.data.to_dict()["differential_privacy"]["epsilon"] == 1


def test_a_teacher_has_no_share_in_the_guarantee(tmp_path):
    save_run(tmp_path, privacy=asdict(guarantee_of(1, 1e-5)))
    taught = make_pipeline(labeler=DiMLabeler(3, 8, 1))
    taught.register_to_config(_name_or_path=str(tmp_path))
    assert "nor the teacher in `labeler/`" in part(model_card(taught, "me/x"), "training")
