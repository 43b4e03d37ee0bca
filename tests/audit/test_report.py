"""What figures of an audit say, in its report and on a model card."""

import copy
import json
from dataclasses import asdict

import pytest
import torch
from huggingface_hub import ModelCard

from dim_hf.audit.findings import find, not_tested, summary
from dim_hf.audit.report import audit_tables, describe_audit, read_audit
from dim_hf.hub.card import model_card
from dim_hf.hub.push import export_repository
from dim_hf.models import DiMGenerator, DiMLabeler
from dim_hf.pipelines import DiMPipeline
from dim_hf.privacy import guarantee_of
from dim_hf.weights import module_digest, weights_digest


def space(share=0.5, p=0.5, equal=0, equal_p=1.0):
    return {
        "nearer_to_training": {"share": share, "expected": 0.5, "interval": [share - 0.1, share + 0.1], "p": p},
        "auth_pct": 0.6, "auth_pct_of_held_out": 0.61, "equal_to_training": equal, "equal_to_held_out": 0,
        "equal_p": equal_p,
        "near_copies_of_training": 2, "near_copies_of_held_out": 1,
        "median_distance_to_training": 20.0, "median_distance_to_held_out": 20.0,
    }  # fmt: skip


def figures(auc=0.5, deviation=0.01, rate=0.01):
    passing = {"rate": rate, "interval": [rate / 1.2, rate * 1.2], "false_positive_rate_at_most": 0.015}
    return {
        "members": 1000, "non_members": 1000, "auc": auc, "auc_deviation": deviation,
        "auc_interval": [auc - 2 * deviation, auc + 2 * deviation], "tpr": {"0.001": None, "0.01": passing},
    }  # fmt: skip


def make_audit(**changes):
    membership = {
        "shadows": 8, "steps": 100, "steps_of_the_run": 200,
        "pipeline": {"classifier": figures(), "inversion": figures()},
        "runs": {"classifier": figures()},
        "canaries": {"rare": {"classifier": figures(0.4), "inversion": figures(0.51)}},
    }  # fmt: skip
    audit = {
        "format": 1, "weights": "w", "privacy": None,
        "data": {"train": 900, "held_out": 300, "held_out_is": "split test", "held_out_equal_to_training": 0},
        "folder": {"weights": [], "run": [], "other": [], "discriminator": None},
        "copies": {"generated": 500, "classifier": "convnet3", "pixels": space(), "features": space()},
        "membership": membership,
    }  # fmt: skip
    audit = copy.deepcopy(audit | changes)
    audit["findings"] = find(audit)
    return audit


def levels(audit):
    return [each["level"] for each in audit["findings"]]


def test_chance_is_no_finding():
    audit = make_audit()
    assert audit["findings"] == [] and "found no sign" in summary(audit) and "not proof" in summary(audit)


def test_copies_are_a_trace_or_a_leak_by_their_size():
    def with_share(share, p):
        return make_audit(copies={"generated": 500, "pixels": space(), "features": space(share, p)}, membership=None)

    assert levels(with_share(0.9, 0.0001)) == ["leak"] and levels(with_share(0.54, 0.0001)) == ["trace"]
    # Two tests share one per cent.
    assert levels(with_share(0.9, 0.006)) == [] and levels(with_share(0.9, 0.004)) == ["leak"]
    assert "90.0 % of the generated images" in with_share(0.9, 0.0001)["findings"][0]["text"]


def test_one_exact_copy_is_a_leak_and_what_chance_makes_is_told():
    def with_equal(equal, p):
        pixels = space(equal=equal, equal_p=p)
        return make_audit(copies={"generated": 500, "pixels": pixels, "features": space()}, membership=None)

    some, one = with_equal(9, 0.002), with_equal(1, 0.75)
    assert levels(some) == ["leak"] and some["findings"][0]["text"].startswith("9 of 500 generated images equal")
    assert levels(one) == ["leak"] and "can be chance where images repeat (p = 0.75)" in one["findings"][0]["text"]
    assert "chance" not in some["findings"][0]["text"]


@pytest.mark.parametrize("where", ["pipeline", "runs", "canaries"])
def test_membership_is_found_wherever_it_shows(where):
    def with_figures(found):
        membership = make_audit()["membership"]
        of = membership["canaries"]["rare"] if where == "canaries" else membership[where]
        of["classifier"] = found
        return make_audit(membership=membership)

    assert levels(with_figures(figures(0.7))) == ["leak"] and levels(with_figures(figures(0.55))) == ["trace"]
    # By chance in one of five hundred cases, but there are seven tests.
    assert levels(with_figures(figures(0.529))) == []
    # Few, but with certainty: what the area under the curve does not show.
    assert levels(with_figures(figures(0.51, rate=0.2))) == ["leak"]
    assert "20.0 % of them at 1 % false alarms" in with_figures(figures(0.51, rate=0.2))["findings"][0]["text"]


def test_a_discriminator_in_the_folder_is_a_leak_whatever_is_tested():
    stray = {"weights": ["d/x.safetensors", "y.pt"], "run": [], "other": [], "discriminator": "d"}
    audit = make_audit(copies=None, membership=None, folder=stray)
    assert levels(audit) == ["leak", "leak"]
    assert "discriminator (d)" in audit["findings"][0]["text"]
    assert "y.pt" in audit["findings"][1]["text"] and "d/x" not in audit["findings"][1]["text"]


def test_what_lies_beside_a_pipeline_says_nothing_of_its_images():
    stray = {"weights": ["notes.npz"], "run": ["checkpoint-5"], "other": [], "discriminator": "d"}
    audit = make_audit(folder=stray)
    assert "found no sign" in summary(audit)
    # A card is pushed without it, a report is read beside it.
    assert not any(word in describe_audit(audit) for word in ("notes.npz", "checkpoint-5", "discriminator"))
    words = audit_tables(audit)[0]["text"]
    assert "notes.npz" in words and "also holds checkpoint-5 of its run" in words


def test_leaks_come_before_traces():
    audit = make_audit(copies={"generated": 5, "pixels": space(0.54, 0), "features": space(0.9, 0)}, membership=None)
    assert levels(audit) == ["leak", "trace"] and "gives away training images" in summary(audit)


def test_what_was_not_tested_is_told():
    assert any("there were 8 shadow runs" in line for line in not_tested(make_audit()))
    without = not_tested(make_audit(membership=None, folder=None))
    assert any("membership inference" in line for line in without) and "other files of the repository" in without
    assert any("generated images are copies" in line for line in not_tested(make_audit(copies=None)))


def test_tables_have_every_attack_and_the_best_of_each_canary():
    _, copies, membership = audit_tables(make_audit())
    assert [row[0] for row in copies["cells"]] == ["pixels", "features"]
    assert [row[0] for row in membership["cells"]] == [
        "this pipeline", "this pipeline", "runs like it", "canaries: negatives of real images",
    ]  # fmt: skip
    assert membership["cells"][-1][2].startswith("0.510") and membership["cells"][0][3] == "too few others"
    assert "8 shadow runs of 100 steps (50 % of the run's)" in membership["text"]
    assert "prove little" in copies["text"]
    for table in (copies, membership):
        assert {len(row) for row in table["cells"]} == {len(table["header"])}


def build(folder, seed=0):
    torch.manual_seed(seed)
    DiMPipeline(DiMGenerator(2, 8, 1, 6, 4, (8,), (0,)), {0: "a", 1: "b"}).save_pretrained(folder)
    return DiMPipeline.from_pretrained(folder)


def write(folder, audit):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "audit.json").write_text(json.dumps(audit))


def section(card):
    return card.text.partition("<!-- audit of ")[2].partition("<!-- end of audit -->")[0]


def test_a_card_without_an_audit_says_so_and_promises_nothing(tmp_path):
    card = model_card(build(tmp_path), "me/x")
    assert "- **Privacy:** **no privacy guarantee**" in card.text and "has not been measured" in section(card)
    assert card.text.index("## Results") < card.text.index("## What this gives away") < card.text.index("## Training")


def test_the_card_has_the_audit_of_its_weights_only(tmp_path):
    pipeline = build(tmp_path / "run")
    audit = make_audit(weights=weights_digest(pipeline))
    write(tmp_path / "run" / "audit", audit)
    write(tmp_path / "other", audit | {"weights": "0123"})
    text = section(model_card(pipeline, "me/x"))
    assert describe_audit(audit) in text and "Not tested:" in text
    with pytest.raises(ValueError, match="is an audit of other weights"):
        read_audit(pipeline, tmp_path / "other")
    with pytest.raises(ValueError, match="holds no audit.json"):
        read_audit(pipeline, tmp_path)
    assert read_audit(build(tmp_path / "new", seed=1)) is None


def test_membership_was_not_tested_of_a_teacher_that_came_later(tmp_path):
    pipeline = build(tmp_path / "run")
    write(tmp_path / "run" / "audit", make_audit(weights=weights_digest(pipeline), settings={"labeler": None}))
    card = model_card(pipeline, "me/x")
    labeler = DiMLabeler(2, 8, 1, 4)
    DiMPipeline(pipeline.generator, pipeline.config.id2label, labeler).save_pretrained(tmp_path / "run")
    taught = DiMPipeline.from_pretrained(tmp_path / "run")
    # Neither on a new card nor on that of the pipeline without it.
    for existing in (None, card):
        assert "has not been measured" in section(model_card(taught, "me/x", existing=existing))
    with pytest.raises(ValueError, match="is an audit of other weights"):
        read_audit(taught, tmp_path / "run" / "audit")
    for audit in (
        make_audit(weights=weights_digest(pipeline), settings={"labeler": module_digest(taught.labeler)}),
        make_audit(weights=weights_digest(pipeline), settings={"labeler": None}, membership=None),
    ):
        write(tmp_path / "run" / "audit", audit)
        assert describe_audit(audit) in section(model_card(taught, "me/x", existing=card))


def test_the_report_tells_the_guarantee():
    (first, *_) = audit_tables(make_audit(privacy=asdict(guarantee_of(1, 1e-5))))
    assert first["text"].startswith("The training has differential privacy with epsilon 1 and delta 1e-05. Unit: one")
    (first, *_) = audit_tables(make_audit())
    assert first["text"].startswith("The training has no privacy guarantee;")
    (first, *_) = audit_tables(make_audit(run_known=False))
    assert first["text"].startswith("What the training guarantees is not known here")


@pytest.mark.parametrize(
    "change",
    [
        {"copies": 5},
        {"membership": {"shadows": 8}},
        {"findings": [5]},
        {"findings": None},
        {"data": {}},
        {"privacy": "none"},
        {"copies": {"generated": "1", "classifier": "c", "pixels": {}, "features": {}}},
    ],
    ids=range(7),
)
def test_a_damaged_audit_is_refused(tmp_path, change):
    pipeline = build(tmp_path / "run")
    write(tmp_path / "run" / "audit", make_audit(weights=weights_digest(pipeline)) | change)
    with pytest.raises(ValueError, match="audit.json is damaged; valid is what audit_dim.py writes"):
        model_card(pipeline, "me/x")


def test_an_audit_does_not_write_the_card(tmp_path):
    injected = "x <!-- end of audit --> <script>alert(1)</script> [free](https://evil.example) |"
    pipeline = build(tmp_path / "run")
    audit = make_audit(weights=weights_digest(pipeline))
    audit["findings"] = [{"level": "trace", "text": injected}]
    audit["data"]["held_out_is"] = audit["copies"]["classifier"] = injected
    write(tmp_path / "run" / "audit", audit)
    text = section(model_card(pipeline, "me/x"))
    assert (
        text.count("alert") == 3 and "<" not in text.partition("-->")[2] and "](https" not in text.replace(r"\]", "")
    )


def test_a_card_from_before_gets_the_section_where_it_belongs_and_keeps_the_rest(tmp_path):
    pipeline = build(tmp_path / "run")
    write(tmp_path / "audit", make_audit(weights=weights_digest(pipeline)))
    export_repository(pipeline, tmp_path / "export")
    card = tmp_path / "export" / "README.md"
    start, _, rest = card.read_text().partition("## What this gives away")
    old = f"{start}## Mine\n\nwords\n\n## Training{rest.partition('## Training')[2]}"
    card.write_text(old)
    # Without an audit nothing is added.
    export_repository(pipeline, tmp_path / "export")
    assert card.read_text() == old
    export_repository(pipeline, tmp_path / "export", audit_dir=tmp_path / "audit")
    new = card.read_text()
    before, _, after = new.partition("## What this gives away")
    assert f"{before}## Training{after.partition('## Training')[2]}" == old
    assert before.endswith("words\n\n") and "found no sign" in after
    # A second audit takes its place, without another copy.
    write(tmp_path / "again", make_audit(weights=weights_digest(pipeline), membership=None))
    export_repository(pipeline, tmp_path / "export", audit_dir=tmp_path / "again")
    assert card.read_text().count("## What this gives away") == 1
    assert "membership inference)" in section(ModelCard.load(card))


def test_an_audit_of_other_weights_leaves_the_card(tmp_path):
    pipeline = build(tmp_path / "run")
    write(tmp_path / "audit", make_audit(weights=weights_digest(pipeline)))
    card = model_card(pipeline, "me/x", audit_dir=tmp_path / "audit")
    later = model_card(build(tmp_path / "new", seed=1), "me/x", existing=card)
    assert "has not been measured" in section(later)
