"""Model cards: what is on them, what never is, and what a later push changes of them."""

import json
import re
import shutil
from dataclasses import asdict, replace

import pytest
import torch
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st

from dim_hf.evaluation.tables import Row, results_table, write_report
from dim_hf.hub.card import DIGITS, describe_data, local_or_hub, model_card
from dim_hf.hub.merging import PART, existing_card, merge_cards
from dim_hf.messages import markdown
from dim_hf.models import DiMGenerator, DiMLabeler
from dim_hf.pipelines import DiMPipeline
from dim_hf.privacy import guarantee_of
from dim_hf.weights import module_bytes, module_digest, stored_form, weights_digest


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


def test_the_card_of_a_variant_loads_that_variant():
    text = model_card(make_pipeline(), "me/cats", variant="int4").text
    assert 'DiMPipeline.from_pretrained("me/cats", variant="int4")' in text
    assert 'DiffusionPipeline.from_pretrained("me/cats", variant="int4", trust_remote_code=True)' in text
    # The plain weights, pushed later, have a quick start of their own.
    assert "variant" not in model_card(make_pipeline(), "me/cats", existing=ModelCard(text)).text


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


def test_results_of_another_form_of_storage_are_not_those_of_this_file(tmp_path):
    # What int4 stores is exact in float32, so only the bytes differ.
    save_run(tmp_path / "run").save_pretrained(tmp_path / "run", storage="int4")
    small = DiMPipeline.from_pretrained(tmp_path / "run")
    evaluation = tmp_path / "run" / "evaluation"
    evaluation.mkdir()
    details = {"weights": weights_digest(small), "generator_bytes": module_bytes(small.generator)}
    details["options"] = OPTIONS | {"test_split": "test"}
    stored = f"The generator takes {module_bytes(small.generator):,} bytes."
    write_report(evaluation, ROWS, f"Protocol B. {stored}", details)
    card = model_card(small, "me/cats")
    assert stored in part(card, "results")
    large = stored_form(small, "float32")
    assert weights_digest(large) == weights_digest(small)
    assert "Not measured yet" in part(model_card(large, "me/cats"), "results")
    # Nor are they if a card has them already; then they stay away until they are measured.
    for _ in range(2):
        card = model_card(large, "me/cats", existing=card)
        assert "Not measured yet" in part(card, "results") and card.data.eval_results is None
    card = model_card(small, "me/cats", existing=card)
    shutil.rmtree(evaluation)
    assert stored in part(card, "results") and stored in part(model_card(small, "me/cats", existing=card), "results")
    evaluation.mkdir()
    write_report(evaluation, ROWS, f"Protocol B. {stored}", details)
    with pytest.raises(ValueError, match="evaluation is an evaluation of these weights in another form of storage"):
        model_card(large, "me/cats", evaluation_dir=evaluation)


def test_no_accuracy_of_other_weights_stays_where_only_protocol_c_was_measured(tmp_path):
    first = save_run(tmp_path / "run")
    evaluate(first, tmp_path / "run" / "evaluation")
    card = model_card(first, "me/cats")
    second = save_run(tmp_path / "run", seed=1)
    evaluate(second, tmp_path / "run" / "evaluation", [replace(ROWS[0], protocol="C")])
    merged = model_card(second, "me/cats", existing=card)
    assert "| C " in part(merged, "results") and merged.data.eval_results is None


@pytest.mark.parametrize("options", [{"soft_labels": True}, {"max_attempts": [1, 8]}, {"choose_from": [4]}])
def test_results_that_a_teacher_has_a_share_in_are_of_that_teacher(tmp_path, options):
    teacher, other = DiMLabeler(3, 8, 1, width=4), DiMLabeler(3, 8, 1, width=4)
    pipeline = make_pipeline(labeler=teacher)
    details = {"labeler": module_digest(teacher)} | {"weights": weights_digest(pipeline)}
    tmp_path = tmp_path / "evaluation"
    tmp_path.mkdir()
    for used in (options, {"soft_labels": False, "max_attempts": [1], "choose_from": [1]}):
        write_report(tmp_path, ROWS, "Protocol B.", details | {"options": OPTIONS | {"test_split": "test"} | used})
        assert "Protocol B." in model_card(pipeline, "me/cats", evaluation_dir=tmp_path).text
        for changed in (make_pipeline(labeler=other), make_pipeline()):
            if used == options:
                with pytest.raises(ValueError, match="evaluation is an evaluation of other weights"):
                    model_card(changed, "me/cats", evaluation_dir=tmp_path)
            else:
                assert "Protocol B." in model_card(changed, "me/cats", evaluation_dir=tmp_path).text


def test_the_results_of_another_teacher_leave_the_card(tmp_path):
    teacher, other = DiMLabeler(3, 8, 1, width=4), DiMLabeler(3, 8, 1, width=4)
    pipeline = make_pipeline(labeler=teacher)
    details = {"options": OPTIONS | {"test_split": "test", "soft_labels": True}, "labeler": module_digest(teacher)}
    write_report(tmp_path, ROWS, "Protocol B.", details | {"weights": weights_digest(pipeline)})
    card = model_card(pipeline, "me/cats", evaluation_dir=tmp_path)
    for same in (pipeline, make_pipeline(labeler=teacher)):
        assert "Protocol B." in part(model_card(same, "me/cats", existing=card), "results")
    for changed in (make_pipeline(labeler=other), make_pipeline()):
        again = model_card(changed, "me/cats", existing=card)
        assert "Not measured yet" in part(again, "results") and again.data.eval_results is None
    # By a release that did not record the teacher.
    del details["labeler"]
    write_report(tmp_path, ROWS, "Protocol B.", details | {"weights": weights_digest(pipeline)})
    with pytest.raises(ValueError, match="is an evaluation by another release of dim_hf"):
        model_card(pipeline, "me/cats", evaluation_dir=tmp_path)


def test_a_pipeline_in_fewer_bits_keeps_the_licence_of_its_data(tmp_path):
    data = {"dataset_name": "digits"}
    first = str(model_card(save_run(tmp_path / "a", **data), "me/cats")).replace("cc-by-4.0", "mit")
    pulled = stored_form(make_pipeline(), "int4")
    evaluate(pulled, tmp_path / "evaluation", **data)
    card = model_card(pulled, "me/cats", existing=ModelCard(first), evaluation_dir=tmp_path / "evaluation")
    assert card.data.license == "mit" and "**Licence of the data set:** mit" in part(card, "training")


def test_results_name_the_data_that_they_are_of(tmp_path):
    pipeline = save_run(tmp_path / "run", dataset_name="ylecun/mnist")
    evaluate(pipeline, tmp_path / "run" / "evaluation")
    card = model_card(pipeline, "me/cats")
    assert card.data.datasets == ["ylecun/mnist"] and {each.dataset_type for each in card.data.eval_results} == {
        "digits"
    }
    # Without the options of its run nothing is known of what a pipeline was trained on.
    (tmp_path / "run" / "options.json").unlink()
    card = model_card(pipeline, "me/cats")
    assert "A generator that stores a labelled image data set.\n" in card.text and card.data.license is None
    assert {each.dataset_type for each in card.data.eval_results} == {"digits"}


def test_a_pipeline_in_memory_has_nothing_to_do_with_where_the_process_runs(tmp_path, monkeypatch):
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "metrics.json").write_text('{"accuracy": 1}')
    monkeypatch.chdir(tmp_path)
    assert "Not measured yet" in model_card(make_pipeline(), "me/cats").text


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
    names = ("Coat", "Bag", "2", "Boot")
    other = save_run(tmp_path / "other", names=names)
    card = model_card(other, "me/cats", existing=first)
    assert "## My own words" in card.text and card.data.tags[0] == "my-tag"
    assert f"A generator that stores {DIGITS}.\n" in part(card, "model") and "in 4 classes" in part(card, "model")
    assert "Classes: 0 Coat, 1 Bag, 2, 3 Boot.\n" in part(card, "model")
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


# Words of strangers

INJECTED = "x <!-- end of model --> <script>alert(1)</script> [free](https://evil.example) ![p](//evil.example/p) `"


def shown(text):
    """The card's text without code, where nothing is markup."""
    return re.sub(r"^```.*?^```$|(?<!\\)`[^`\n]*`", "", text, flags=re.DOTALL | re.MULTILINE)


def assert_only_ours(card):
    text = card.text
    assert [part[1] for part in PART.finditer(text)] == ["model", "start", "results", "audit", "training"]
    assert text.count("<!--") == 10
    assert not re.search(r"<(?!!--)|(?<!\\)\]\((?!https://(arxiv\.org|huggingface\.co)|samples\.png)", shown(text))
    assert ModelCard(str(card)).data.license in (None, "cc-by-4.0")


def test_class_names_do_not_write_the_card(tmp_path):
    names = [INJECTED, "```", "# Mine | yours", "---"]
    card = model_card(save_run(tmp_path, names=names), "me/x")
    assert_only_ours(card)
    assert r"\[free\](https://evil.example)" in part(card, "model")
    # A later push finds the parts of the first.
    assert str(model_card(save_run(tmp_path, names=names), "me/x", existing=card)) == str(card)


def test_options_and_environment_do_not_write_the_card(tmp_path):
    pipeline = save_run(tmp_path)
    options = {"dataset_name": INJECTED, "seed": INJECTED, "pool": [f"\n```\n{INJECTED}"], "given": ["seed", "pool"]}
    (tmp_path / "options.json").write_text(json.dumps(OPTIONS | options))
    (tmp_path / "environment.json").write_text(json.dumps({INJECTED: f"\n\n# Mine\n{INJECTED}"}))
    assert_only_ours(model_card(pipeline, "me/x"))


def test_results_do_not_write_the_card(tmp_path):
    pipeline = save_run(tmp_path)
    evaluate(pipeline, tmp_path / "evaluation", [replace(ROWS[0], source=INJECTED, classifier=INJECTED)])
    metrics = json.loads((tmp_path / "evaluation" / "metrics.json").read_text())
    (tmp_path / "evaluation" / "metrics.json").write_text(json.dumps(metrics | {"protocol": INJECTED}))
    card = model_card(pipeline, "me/x")
    assert_only_ours(card)
    assert card.data.eval_results[0].metric_name.count("alert") == 2


@pytest.mark.parametrize(
    "content",
    [
        [],
        {},
        {"dataset_name": 5},
        {"dataset_name": "digits", "given": 3},
        {"dataset_name": "digits", "privacy": "much"},
        {"dataset_name": "digits", "privacy": {"epsilon": "1"}},
    ],
)
def test_options_that_are_not_of_a_run(tmp_path, content):
    pipeline = save_run(tmp_path)
    (tmp_path / "options.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="options.json is damaged; .* of train_dim.py"):
        model_card(pipeline, "me/x")


@pytest.mark.parametrize(
    "change",
    [
        {"rows": 5},
        {"rows": [5]},
        {"protocol": None},
        {"options": []},
        {"options": {}},
        {"rows": [asdict(ROWS[0]) | {"accuracies": []}]},
        {"rows": [asdict(ROWS[0]) | {"accuracies": ["0.9"]}]},
        {"rows": [asdict(ROWS[0]) | {"num_classes": 0}]},
        {"rows": [asdict(ROWS[0]) | {"source": {"a": 1}}]},
    ],
    ids=range(9),
)
def test_metrics_that_are_not_of_an_evaluation(tmp_path, change):
    pipeline = save_run(tmp_path)
    evaluate(pipeline, tmp_path / "evaluation")
    path = tmp_path / "evaluation" / "metrics.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match="metrics.json is damaged; valid is what evaluate_dim.py writes"):
        model_card(pipeline, "me/x")


@pytest.mark.parametrize(
    "text", ["---\na: " + "[" * 100_000 + "\n---\n", "---\n- 1\n---\n", "x" * (2**20 + 1), b"\xff"]
)
def test_a_card_that_cannot_be_read(tmp_path, text):
    path = tmp_path / "README.md"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError) as refused:
        existing_card(ModelCard, path)
    assert len(str(refused.value)) < 600


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.text(max_size=60), st.text(max_size=200))
def test_any_text_is_one_line_of_text(name, words):
    for text in (name, words, f"<!-- {name} -->\n\n{words}"):
        line = markdown(text)
        assert len(line.splitlines()) <= 1 and not re.search(r"[<>]|(?<!\\)(\\\\)*[`\[\]|]", line)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.text(alphabet="-:&*a[]{}\"'|>!#\n ,\x00\u2028", max_size=60))
def test_any_card_is_read_or_refused(tmp_path_factory, metadata):
    path = tmp_path_factory.getbasetemp() / "fuzzed.md"
    path.write_text(f"---\n{metadata}\n---\ntext\n")
    new = ModelCard("---\ntags:\n- dim\n---\n# Ours\n")
    try:
        existing = existing_card(ModelCard, path)
        merged = merge_cards(existing, new, set())
    except ValueError as error:
        assert len(str(error)) < 600
    else:
        assert "dim" in ModelCard(str(merged), ignore_metadata_errors=True).data.tags


def test_a_private_run_states_its_guarantee_in_text_and_metadata(tmp_path):
    privacy = asdict(guarantee_of(1, 1e-5))
    card = model_card(save_run(tmp_path, privacy=privacy, privacy_epsilon=1.0), "me/x")
    training = part(card, "training")
    assert "differential privacy with epsilon 1 and delta 1e-05. Unit: one image with its label" in training
    assert "sensitivity of 1 together and noise of standard deviation 3.731" in training
    assert "does not cover results and audits" in training
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
        assert "- **Privacy:** **no privacy guarantee**" in part(card, "training")
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
