"""What rows are trained on, what it takes to keep it, and scores by hand."""

from dataclasses import asdict, replace

import pytest
import torch

from dim_hf.data import load_image_data
from dim_hf.evaluation.codecs import CODECS, PNG_FILES, packed_subset, png_bytes, unpack
from dim_hf.evaluation.fixed_sets import choose_latents
from dim_hf.evaluation.metrics import unit_score
from dim_hf.evaluation.names import GENERATED, REAL
from dim_hf.evaluation.protocols import Deployment, list_sources
from dim_hf.evaluation.recipe import DeploymentRecipe
from dim_hf.evaluation.results import describe_job, job_key
from dim_hf.evaluation.sources import Draw, SoftLabels, generated_source
from dim_hf.evaluation.tables import Row, row_title, scores
from dim_hf.hub.push import prepare_repository
from dim_hf.models import DiMGenerator, DiMLabeler
from dim_hf.pipelines import DiMPipeline
from dim_hf.streams.generated import GeneratedStream
from dim_hf.streams.real import RealStream
from dim_hf.weights import module_bytes, module_digest


RECIPE = DeploymentRecipe(epochs=3, batch_size=16)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return load_image_data("digits", cache_dir=tmp_path_factory.mktemp("cache"))


@pytest.fixture
def pipeline():
    torch.manual_seed(0)
    generator = DiMGenerator(10, 8, 1, 4, 4, (8,), (0,)).eval()
    pipeline = DiMPipeline(generator, labeler=DiMLabeler(10, 8, 1, width=4).eval())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def sources_of(pipeline, digits, **arguments):
    def latents_of(seed):
        return choose_latents(pipeline.generator, 2, "random", seed=seed)

    options = {"protocols": ["A", "B"], "controls": list(REAL), "selections": {"fixed set": latents_of}} | arguments
    options.setdefault("codec_for", lambda budget: CODECS["JPEG quality 25"])
    return list_sources(pipeline, 2, RECIPE, digits, **options)


def test_all_rows_take_equal_steps_and_name_their_protocol(pipeline, digits):
    sources = sources_of(pipeline, digits, soft_labels=True, without_augmentation=True, before_matching=pipeline)
    assert {source.stream(0).steps_per_epoch for source in sources} == {2}
    assert [(s.description, s.protocol, s.labels, s.augment, s.control) for s in sources] == [
        (GENERATED, "B", "hard", True, False),
        ("fixed set", "A", "hard", True, False),
        ("generated, before matching", "B", "hard", True, True),
        (REAL["streamed"], "A, B", "hard", True, True),
        (REAL["random"], "A, B", "hard", True, True),
        (REAL["equal_bytes"], "A, B", "hard", True, True),
        ("real subset of equal bytes, JPEG quality 25", "A, B", "hard", True, True),
        (REAL["whole"], "A, B", "hard", True, True),
        (GENERATED, "B", "soft", True, False),
        ("fixed set", "A", "soft", True, False),
        (REAL["random"], "A, B", "soft", True, True),
        (GENERATED, "B", "hard", False, False),
        ("fixed set", "A", "hard", False, False),
        (REAL["random"], "A, B", "hard", False, True),
    ]
    # Each is a job of its own, but for the two generators of the same weights.
    identities = [str(sorted(source.identity(0).items())) for source in sources]
    assert len(set(identities)) == len(sources) - 1


def test_the_legacy_protocol_has_one_control(pipeline, digits):
    sources = sources_of(pipeline, digits, protocols=["C"], before_matching=pipeline)
    # 20 images per epoch, of which the released code with its batch of 128 would make none.
    assert [(s.description, s.protocol, s.control, s.stream(0).steps_per_epoch, s.seen(0)) for s in sources] == [
        (GENERATED, "C", False, 1, 60),
        (REAL["streamed"], "C", True, 1, 60),
    ]
    balanced = sources_of(pipeline, digits, protocols=["C"], legacy_batch_size=10)
    assert [(s.stream(0).steps_per_epoch, s.seen(0)) for s in balanced] == [(2, 60), (2, 60)]
    assert all(s.identity(0) == b.identity(0) and s.judge != b.judge for s, b in zip(sources, balanced, strict=True))
    (alone,) = sources_of(pipeline, digits, protocols=["C"], controls=["random"])
    assert alone.description == GENERATED


def test_settings_that_the_legacy_protocol_ignores_run_nothing_again(pipeline, digits):
    def jobs(**settings):
        recipe = replace(RECIPE, **settings)
        sources = list_sources(pipeline, 2, recipe, digits, protocols=["C"], controls=["streamed"])
        return [job_key(describe_job(source, "convnet3", 0, digits)) for source in sources]

    assert jobs(learning_rate=0.5, mixed_precision="bf16", batch_size=8, label_smoothing=0.0) == jobs()
    assert not {*jobs(epochs=4)} & {*jobs()}


def test_a_fixed_set_is_the_same_in_every_epoch_and_costs_its_latents(pipeline, digits):
    fixed = sources_of(pipeline, digits)[1]

    def images(epoch):
        return sorted(image.numpy().tobytes() for images, _ in fixed.stream(0).batches(epoch) for image in images)

    assert images(0) == images(2) and len(set(images(0))) == fixed.seen(0) == 20
    assert fixed.stored(0) == module_bytes(pipeline.generator) + 20 * 4 * 4
    assert fixed.content(0) != fixed.content(1)


def test_bytes_are_those_of_the_saved_file(pipeline, tmp_path):
    full = module_bytes(pipeline.generator)
    pipeline.save_pretrained(tmp_path / "full")
    file = "generator/diffusion_pytorch_model.safetensors"
    assert module_bytes(DiMPipeline.from_pretrained(tmp_path / "full").generator) == full
    assert (tmp_path / "full" / file).stat().st_size == full
    pipeline.to(torch.float16).save_pretrained(tmp_path / "half")
    half = DiMPipeline.from_pretrained(tmp_path / "half")
    # Loaded in full precision, and kept in half.
    assert half.generator.dtype == torch.float32
    assert module_bytes(half.generator) == (tmp_path / "half" / file).stat().st_size < full


@pytest.mark.parametrize("storage", ["float32", "float16", "int8"])
def test_bytes_of_a_teacher_are_those_of_the_file_that_it_came_from(pipeline, storage, tmp_path):
    taught = DiMPipeline(pipeline.generator, pipeline.config.id2label, DiMLabeler(10, 8, 1, 4))
    taught.save_pretrained(tmp_path)
    taught.save_pretrained(tmp_path, variant="small", storage=storage)
    loaded = DiMPipeline.from_pretrained(tmp_path, variant="small")
    (file,) = (tmp_path / "labeler").glob("*.small.safetensors")
    size = file.stat().st_size
    # What lies there later is not what was loaded.
    file.write_bytes(b"")
    assert module_bytes(loaded.labeler) == size


def test_equal_bytes_are_those_of_the_generator_and_with_fixed_sets_of_their_latents(pipeline, digits):
    def subset(protocols):
        return next(s for s in sources_of(pipeline, digits, protocols=protocols) if s.kind == "equal_bytes")

    weights, latents = module_bytes(pipeline.generator), 20 * 4 * 4
    assert subset(["B"]).stored(0) <= weights < weights + latents
    assert [subset(names).content(0).partition("/")[2] for names in (["B"], ["A"], ["A", "B"])] == [
        f"{weights}/PNG files",
        f"{weights + latents}/PNG files",
        f"{weights + latents}/PNG files",
    ]


def test_equal_bytes_are_kept_in_the_codec_for_their_number_and_read_back_from_it(pipeline, digits):
    asked = []

    def codec_for(budget):
        asked.append(budget)
        return CODECS["LZMA, 4 colours"]

    sources = {s.kind: s for s in sources_of(pipeline, digits, protocols=["B"], codec_for=codec_for)}
    budget = module_bytes(pipeline.generator)
    assert asked == [budget]
    for kind, codec in (("equal_bytes", PNG_FILES), ("equal_bytes_lossy", CODECS["LZMA, 4 colours"])):
        content = packed_subset(digits, budget, 1, codec)
        images, labels = unpack(content)
        source = sources[kind]
        # Labels and headers count.
        assert source.stored(1) == len(content) <= budget and source.content(1).endswith(f"/{budget}/{codec.name}")
        stream = source.stream(1)
        assert torch.equal(stream.data.images, images) and torch.equal(stream.data.labels, labels)
    assert sources["streamed"].stored(0) == png_bytes(digits)


def test_fixed_sets_have_their_control_from_before_matching(pipeline, digits):
    def latents_of(seed):
        return choose_latents(pipeline.generator, 2, "random", seed=seed + 7)

    before = {"before_matching": pipeline, "selections_before": {"fixed set": latents_of}}
    sources = sources_of(pipeline, digits, protocols=["A"], controls=[], **before)
    assert [(s.description, s.protocol, s.control) for s in sources] == [
        ("fixed set", "A", False),
        ("fixed set, before matching", "A", True),
    ]
    fixed, control = (next(iter(source.stream(0).batches(0)))[0] for source in sources)
    assert fixed.shape == control.shape and not torch.equal(fixed, control)


def test_soft_labels_are_the_teachers_and_have_to_be_stored(pipeline, digits):
    sources = sources_of(pipeline, digits, soft_labels=True)
    hard, soft = ({s.description: s for s in sources if s.labels == kind} for kind in ("hard", "soft"))
    for (images, labels), (same, probabilities) in zip(
        hard[REAL["random"]].stream(0).batches(1), soft[REAL["random"]].stream(0).batches(1), strict=True
    ):
        assert torch.equal(images, same) and labels.dtype == torch.int64
        with torch.no_grad():
            assert torch.equal(probabilities, pipeline.labeler(images).logits.softmax(dim=1))
    # Two ways to the same stream.
    own = GeneratedStream(pipeline, 2, 0, RECIPE.batch_size, soft_labels=True).batches(0)
    for (images, labels), (expected, probabilities) in zip(soft[GENERATED].stream(0).batches(0), own, strict=True):
        assert torch.equal(images, expected) and torch.equal(labels, probabilities)
    assert soft[GENERATED].stored(0) - hard[GENERATED].stored(0) == module_bytes(pipeline.labeler)
    for source in ("fixed set", REAL["random"]):
        assert soft[source].stored(0) - hard[source].stored(0) == 20 * 10 * 4


def test_draws_are_rows_that_say_how_images_are_drawn_and_what_has_to_be_kept(pipeline, digits):
    draws = [Draw(), Draw(noise_scale=1.5), Draw(1.25, max_attempts=4, min_confidence=0.5), Draw(choose_from=3)]
    sources = sources_of(pipeline, digits, protocols=["B"], controls=["equal_bytes"], draws=draws, soft_labels=True)
    hard, soft = ([s for s in sources if s.kind == "generated" and s.labels == kind] for kind in ("hard", "soft"))
    assert [source.title for source in hard] == [
        GENERATED,
        f"{GENERATED}, noise x 1.5",
        f"{GENERATED}, noise x 1.25, teacher's filter (4 draws, confidence 0.5)",
        f"{GENERATED}, chosen from 3 times as many",
    ]
    weights, teacher = module_bytes(pipeline.generator), module_bytes(pipeline.labeler)
    assert [source.stored(0) for source in hard] == [weights, weights, *[weights + teacher] * 2]
    # Who keeps a teacher for the filter has it for soft labels.
    assert [source.stored(0) for source in soft] == [weights + teacher] * 4
    for draw, source in zip(draws, hard, strict=True):
        own = GeneratedStream(pipeline, 2, 3, RECIPE.batch_size, **asdict(draw)).batches(1)
        for (images, labels), (expected, expected_labels) in zip(source.stream(3).batches(1), own, strict=True):
            assert torch.equal(images, expected) and torch.equal(labels, expected_labels)
    # Results of the usual draw are found under the name that they had before there were others.
    generator, labeler = module_digest(pipeline.generator), module_digest(pipeline.labeler)
    assert [source.identity(0) for source in hard] == [
        {"source": "generated", "content": generator},
        {"source": "generated", "content": generator, "noise_scale": 1.5},
        {
            "source": "generated",
            "content": f"{generator}/{labeler}",
            "noise_scale": 1.25,
            "max_attempts": 4,
            "kept": "best",
        }
        | {"min_confidence": 0.5},
        {"source": "generated", "content": f"{generator}/{labeler}", "choose_from": 3},
    ]
    pipeline.register_modules(labeler=None)
    with pytest.raises(ValueError, match="the filter of `draws` takes a teacher"):
        sources_of(pipeline, digits, draws=draws)


def test_soft_labels_pass_on_the_length_of_the_stream(pipeline, digits):
    stream = RealStream(digits, 3, 0, 8)
    soft = SoftLabels(stream, pipeline.labeler)
    assert (soft.num_classes, soft.steps_per_epoch) == (stream.num_classes, stream.steps_per_epoch)


def test_another_recipe_of_the_same_images_is_the_same_content(pipeline):
    one, other = (generated_source(pipeline, 2, Deployment(DeploymentRecipe(epochs))) for epochs in (1, 2))
    assert one.identity(0) == other.identity(0) and (one.seen(0), other.seen(0)) == (20, 40)


def row(source, mean, labels="hard", augment=True, protocol="B", control=False, ipc=1):
    return Row(source, "convnet3", ipc, 1, 1, 1, 1, [mean], 1.0, protocol, labels, augment, control)


def test_scores_by_hand():
    rows = [
        row(GENERATED, 0.8),
        row("fixed set", 0.7, protocol="A"),
        row("generated, before matching", 0.1, control=True),
        row(REAL["random"], 0.6, control=True),
        row(REAL["whole"], 0.9, control=True),
        row(GENERATED, 0.85, labels="soft"),
        row(REAL["random"], 0.65, labels="soft", control=True),
        row(GENERATED, 0.5, augment=False),
        row(REAL["random"], 0.4, augment=False, control=True),
        row(GENERATED, 0.2, protocol="C"),
        row(GENERATED, 0.8, ipc=10),
    ]
    found = [(s["source"], s["labels"], s["ipc"], s["lrs"], s["ars"]) for s in scores(rows)]
    assert found == [
        (GENERATED, "hard", 1, pytest.approx(unit_score(0.5 * 0.2 - 0.5 * 0.1)), pytest.approx(unit_score(0.15))),
        ("fixed set", "hard", 1, pytest.approx(unit_score(0.5 * 0.1 - 0.5 * 0.2)), None),
        # Real less generated with hard labels; soft labels less random images with soft labels.
        (GENERATED, "soft", 1, pytest.approx(unit_score(0.5 * 0.2 - 0.5 * 0.1)), None),
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"protocols": ["B", "D"]}, "`protocols` has 'D'; valid are 'A', 'B', 'C'"),
        (
            {"controls": ["equal-bytes"]},
            "`controls` has 'equal-bytes'; valid are 'streamed', 'random', 'equal_bytes', ",
        ),
    ],
)
def test_an_unknown_name_is_refused(pipeline, digits, arguments, message):
    with pytest.raises(ValueError, match=message):
        sources_of(pipeline, digits, **arguments)


def test_other_strings_that_are_unknown_are_refused():
    with pytest.raises(ValueError, match="`labels` is 'Soft'; valid are 'hard' and 'soft'"):
        row_title("generated", "Soft", augment=True)
    for value in (float("nan"), float("inf"), -1.0):
        with pytest.raises(ValueError, match="`learning_rate` is .*; valid is a finite number above 0"):
            DeploymentRecipe(learning_rate=value)
    with pytest.raises(ValueError, match="`repo_type` is 'space'; valid are 'model' and 'dataset'"):
        prepare_repository("me/x", "token", None, repo_type="space")
