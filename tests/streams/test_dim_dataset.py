"""DiMDataset: pure images, workers, samplers, Accelerate; teachers, real data beside it."""

import copy
import pickle

import datasets
import numpy as np
import pytest
import torch
from accelerate import Accelerator, DataLoaderConfiguration, skip_first_batches
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from processes import FORKED, run_as_two
from torch.utils.data import DataLoader, DistributedSampler
from transformers import ViTImageProcessor

from dim_hf import DiMDataset, DiMGenerator, DiMLabeler, DiMPipeline
from dim_hf.streams.dim_dataset import covering
from dim_hf.streams.generated import GeneratedStream
from dim_hf.streams.randomness import latents_at


NAMES = {0: "T-shirt", 1: "Coat", 2: "Bag"}


def make_pipeline(labeler=False, channels=1):
    torch.manual_seed(0)
    generator = DiMGenerator(3, 8, channels, 6, 4, (8,), (0,))
    for parameter in generator.parameters():
        parameter.data.normal_(std=0.5)
    return DiMPipeline(generator, NAMES, DiMLabeler(3, 8, channels, width=4) if labeler else None)


@pytest.fixture(scope="module")
def pipe():
    return make_pipeline()


@pytest.fixture(scope="module")
def taught():
    return make_pipeline(labeler=True)


def expected(pipe, epoch, label, index, seed=0, attempt=0):
    """The image by its definition."""
    label, index = torch.tensor([label]), torch.tensor([index])
    with torch.no_grad():
        return pipe.generator(latents_at(seed, epoch, label, index, 6, attempt), label).sample[0]


def everything(loader):
    batches = list(loader)
    return torch.cat([batch["pixel_values"] for batch in batches]), torch.cat([batch["labels"] for batch in batches])


# Items


def test_an_item_is_a_function_of_seed_epoch_class_and_index(pipe):
    dataset = DiMDataset(pipe, ipc=4, seed=5)
    assert len(dataset) == 12
    for epoch in (0, 3):
        dataset.set_epoch(epoch)
        for position, item in enumerate(dataset):
            label, index = divmod(position, 4)
            assert item.keys() == {"pixel_values", "labels"} and item["labels"] == label
            torch.testing.assert_close(item["pixel_values"], expected(pipe, epoch, label, index, seed=5))


@settings(max_examples=25, deadline=None)
@given(counts=st.lists(st.integers(0, 5), min_size=3, max_size=3).filter(any), data=st.data())
def test_counts_per_class_in_any_batch(pipe, counts, data):
    dataset = DiMDataset(pipe, {NAMES[label]: count for label, count in enumerate(counts)})
    rows = [(label, index) for label, count in enumerate(counts) for index in range(count)]
    assert len(dataset) == len(rows)
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=6))
    for item, position in zip(dataset.__getitems__(chosen), chosen, strict=True):
        assert item["labels"] == rows[position][0]
        torch.testing.assert_close(item["pixel_values"], expected(pipe, 0, *rows[position]))


def test_classes_missing_from_a_dict_are_omitted(pipe):
    labels = [item["labels"] for item in DiMDataset(pipe, {2: 1, "T-shirt": 3})]
    assert labels == [0, 0, 0, 2]


def test_a_generator_is_a_source(pipe):
    bare, whole = DiMDataset(pipe.generator, 2), DiMDataset(pipe, 2)
    assert torch.equal(bare[5]["pixel_values"], whole[5]["pixel_values"])
    assert bare.class_names == ["0", "1", "2"]


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_pictures_are_those_of_the_pipeline(channels, mode):
    pipe = make_pipeline(channels=channels)
    dataset = DiMDataset(pipe, 2, transform=lambda image: image)
    latents = latents_at(0, 0, torch.tensor([0, 0, 1, 1, 2, 2]), torch.tensor([0, 1] * 3), 6)
    pictures = pipe(ipc=2, latents=latents).images
    for item, picture in zip(dataset, pictures, strict=True):
        assert item["pixel_values"].mode == picture.mode == mode
        np.testing.assert_allclose(np.asarray(item["pixel_values"], int), np.asarray(picture, int), atol=1)
    rows = list(dataset.to_iterable_dataset().take(6))
    assert {row["image"].tobytes() for row in rows} == {item["pixel_values"].tobytes() for item in dataset}


@pytest.mark.parametrize("tensors", [None, "pt"])
def test_an_image_processor_is_a_transform(tensors):
    pipe = make_pipeline(channels=3)
    processor = ViTImageProcessor(size={"height": 4, "width": 4})
    transform = processor if tensors is None else lambda image: processor(image, return_tensors=tensors)
    images, _ = everything(DataLoader(DiMDataset(pipe, 2, transform=transform), 3))
    latents = latents_at(0, 0, torch.tensor([0, 0, 1, 1, 2, 2]), torch.tensor([0, 1] * 3), 6)
    wanted = processor(pipe(ipc=2, latents=latents).images, return_tensors="pt").pixel_values
    assert images.shape == (6, 3, 4, 4)
    torch.testing.assert_close(images, wanted, atol=0.02, rtol=0)


def test_noise_scale_multiplies_the_noise(pipe):
    with torch.no_grad():
        image = pipe.generator(
            1.5 * latents_at(0, 0, torch.tensor([1]), torch.tensor([0]), 6), torch.tensor([1])
        ).sample
    torch.testing.assert_close(DiMDataset(pipe, 1, noise_scale=1.5)[1]["pixel_values"], image[0])


def test_positions_are_integers_of_any_kind(pipe):
    dataset = DiMDataset(pipe, 2)
    for position in (5, -1, np.int64(5), np.uint8(5), torch.tensor(5), torch.tensor(-1, dtype=torch.int8)):
        assert torch.equal(dataset[position]["pixel_values"], dataset[5]["pixel_values"])
    items = dataset.__getitems__(np.array([5, 0]))
    assert [item["labels"] for item in items] == [2, 0] and dataset.__getitems__([]) == []


def test_numbers_of_numpy_count_like_those_of_python(pipe):
    plain = DiMDataset(pipe, {"Coat": 3, 0: 1}, seed=7)
    numpy = DiMDataset(
        pipe, {np.str_("Coat"): np.uint8(3), np.int64(0): np.int8(1)}, np.int64(7), noise_scale=np.float32(1)
    )
    plain.set_epoch(2)
    numpy.set_epoch(np.int64(2))
    for one, other in zip(plain, numpy, strict=True):
        assert one["labels"] == other["labels"] and torch.equal(one["pixel_values"], other["pixel_values"])


# Training loops


@pytest.mark.parametrize(
    ("context", "workers"), [("fork", 2), pytest.param(FORKED, 1, id="forkserver", marks=pytest.mark.slow)]
)
def test_persistent_workers_give_the_images_of_the_epoch(pipe, context, workers):
    dataset = DiMDataset(pipe, 4)
    loader = DataLoader(dataset, 5, num_workers=workers, persistent_workers=True, multiprocessing_context=context)
    plain = DataLoader(DiMDataset(pipe, 4), 12)
    for epoch in (0, 2):
        dataset.set_epoch(epoch)
        plain.dataset.set_epoch(epoch)
        for found, wanted in zip(everything(loader), everything(plain), strict=True):
            torch.testing.assert_close(found, wanted)


def test_a_batch_is_one_forward_pass():
    pipe = make_pipeline()
    sizes = []
    pipe.generator.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    everything(DataLoader(DiMDataset(pipe, 4), 5))
    assert sizes == [5, 5, 2]


def test_distributed_sampler_divides_an_epoch(pipe):
    dataset = DiMDataset(pipe, 4)
    parts = []
    for rank in range(2):
        sampler = DistributedSampler(dataset, num_replicas=2, rank=rank, shuffle=True)
        parts.append(everything(DataLoader(dataset, 4, sampler=sampler))[0])
    whole, _ = everything(DataLoader(dataset, 12))
    found = torch.cat(parts).flatten(1)
    assert len(found) == 12
    torch.testing.assert_close(
        torch.cdist(found, whole.flatten(1)).min(dim=0).values, torch.zeros(12), atol=1e-3, rtol=0
    )


@pytest.mark.slow
def test_two_processes_divide_each_epoch(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "pipeline")
    script = tmp_path / "loop.py"
    script.write_text(f"""
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, DistributedSampler
from dim_hf import DiMDataset, DiMPipeline
accelerator = Accelerator()
dataset = DiMDataset(DiMPipeline.from_pretrained({str(tmp_path / "pipeline")!r}), 4)
prepared = accelerator.prepare(DataLoader(dataset, 3, shuffle=True, num_workers=1, persistent_workers=True))
sampler = DistributedSampler(dataset)
sampled = DataLoader(dataset, 3, sampler=sampler)
found = {{"accelerate": [], "sampler": []}}
for epoch in range(2):
    found["accelerate"].append(torch.cat([batch["pixel_values"] for batch in prepared]))
for epoch in range(2):
    sampler.set_epoch(epoch)
    dataset.set_epoch(epoch)
    found["sampler"].append(torch.cat([batch["pixel_values"] for batch in sampled]))
torch.save(found, {str(tmp_path)!r} + f"/{{accelerator.process_index}}-of-{{accelerator.num_processes}}.pt")
accelerator.end_training()
""")
    run_as_two([script])
    parts = [torch.load(tmp_path / f"{rank}-of-2.pt") for rank in range(2)]
    dataset = DiMDataset(pipe, 4)
    for way in ("accelerate", "sampler"):
        for epoch in range(2):
            dataset.set_epoch(epoch)
            wanted = torch.stack([item["pixel_values"] for item in dataset]).flatten(1)
            own = [part[way][epoch].flatten(1) for part in parts]
            assert [len(part) for part in own] == [6, 6]
            nearest = torch.cdist(torch.cat(own), wanted).min(dim=1)
            assert nearest.values.max() < 1e-3 and sorted(nearest.indices.tolist()) == list(range(12))


def test_accelerate_sets_the_epoch(pipe):
    dataset = DiMDataset(pipe, 4)
    loader = Accelerator(cpu=True).prepare(DataLoader(dataset, 12))
    first, second = everything(loader)[0], everything(loader)[0]
    dataset.set_epoch(1)
    assert not torch.allclose(first, second)
    torch.testing.assert_close(second, torch.stack([item["pixel_values"] for item in dataset]))


def test_an_accelerate_loop_goes_on_in_mid_epoch(pipe):
    dataset = DiMDataset(pipe, 4)
    configuration = DataLoaderConfiguration(use_seedable_sampler=True)
    accelerator = Accelerator(cpu=True, dataloader_config=configuration)
    loader = accelerator.prepare(DataLoader(dataset, 6, shuffle=True))
    epochs = []
    for epoch in (5, 6):
        loader.set_epoch(epoch)
        dataset.set_epoch(epoch)
        for batch in skip_first_batches(loader, 1) if epoch == 5 else loader:
            whole = torch.stack([item["pixel_values"] for item in dataset])
            for image in batch["pixel_values"]:
                assert (whole - image).abs().amax(dim=(1, 2, 3)).min() < 1e-5
            epochs.append(dataset.epoch)
    assert epochs == [5, 6, 6]


def test_a_generator_on_another_device_is_not_for_workers(pipe):
    dataset = DiMDataset(copy.deepcopy(pipe.generator), 2)
    stream = dataset.to_iterable_dataset()
    dataset.generator.to("meta")
    for each in (dataset, stream):
        with pytest.raises(RuntimeError, match="the generator is on meta.*`num_workers=0`"):
            next(iter(DataLoader(each, 2, num_workers=1)))


@pytest.mark.parametrize("name", ["generator", "labeler"])
def test_networks_in_training_mode_are_refused(name):
    pipe = make_pipeline(labeler=True)
    dataset = DiMDataset(pipe, 2, soft_labels=True)
    stream = GeneratedStream(pipe, 2, 0, 6)
    getattr(pipe, name).train()
    for make in (lambda: dataset[0], lambda: next(stream.batches(0))):
        with pytest.raises(RuntimeError, match=f"the {name} is in training mode, .* call its `eval\\(\\)` first"):
            make()


# Teachers


def test_soft_labels_are_the_teachers_probabilities(taught):
    dataset = DiMDataset(taught, 2, soft_labels=True)
    images, labels = everything(DataLoader(dataset, 6))
    assert labels.shape == (6, 3) and labels.dtype == torch.float32
    with torch.no_grad():
        torch.testing.assert_close(labels, taught.labeler(images).logits.softmax(dim=1))
    ((stream_images, stream_labels),) = GeneratedStream(taught, 2, 0, 6, soft_labels=True).batches(0)
    with torch.no_grad():
        torch.testing.assert_close(stream_labels, taught.labeler(stream_images).logits.softmax(dim=1))


@pytest.mark.parametrize(("batch_size", "min_confidence"), [(1, 0.0), (7, 0.0), (30, 0.0), (7, 0.35)])
def test_the_first_draw_that_the_teacher_agrees_with_is_kept_or_else_the_best(taught, batch_size, min_confidence):
    dataset = DiMDataset(taught, 10, max_attempts=4, min_confidence=min_confidence)
    images, labels = everything(DataLoader(dataset, batch_size))
    drawn_again, never_accepted = 0, 0
    for position, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        draws = []
        for attempt in range(4):
            candidate = expected(taught, 0, label, position % 10, attempt=attempt)
            confidences = taught.labeler(candidate[None]).logits.softmax(dim=1)[0]
            right = bool(confidences.argmax() == label)
            # Of the right class first, then by confidence.
            draws.append((right, confidences[label].item(), -attempt, candidate))
            if right and confidences[label] >= min_confidence:
                break
        else:
            never_accepted += 1
            draws = [max(draws, key=lambda draw: draw[:3])]
        drawn_again += attempt > 0
        torch.testing.assert_close(image, draws[-1][3])
    assert 5 < drawn_again < 30 and never_accepted > 0


# Choosing among more


def features(pipe, images):
    with torch.no_grad():
        return pipe.labeler.network[:-1](images)


def cost(rows, chosen):
    """The sum of squared distances of all rows to the nearest chosen one."""
    return torch.cdist(rows, rows[chosen]).square().min(dim=1).values.sum()


def test_to_choose_from_as_many_is_not_to_choose(pipe, taught):
    for source in (pipe, taught):
        images, _ = everything(DataLoader(DiMDataset(source, 5), 4))
        assert torch.equal(everything(DataLoader(DiMDataset(source, 5, choose_from=1), 4))[0], images)


def test_a_choice_among_many_needs_no_large_batch():
    pipe = make_pipeline(labeler=True)
    sizes = []
    pipe.generator.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    DiMDataset(pipe, 64, choose_from=20).make(0, torch.tensor([0]))
    # 1,280 of each class.
    assert sizes == [1024, 256] * 3 + [1]


@pytest.mark.parametrize("max_attempts", [1, 3])
def test_chosen_images_are_of_the_drawn_ones_and_cover_them_best(taught, max_attempts):
    settings = {"seed": 3, "max_attempts": max_attempts}
    drawn = DiMDataset(taught, 20, **settings).make(1, torch.arange(60))[0].unflatten(0, (3, 20))
    chosen, labels = DiMDataset(taught, 4, choose_from=5, **settings).make(1, torch.arange(12))
    assert labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    for of_class, candidates in zip(chosen.unflatten(0, (3, 4)), drawn, strict=True):
        near = torch.isclose(of_class[:, None], candidates, atol=1e-5).flatten(2).all(dim=2)
        positions = near.int().argmax(dim=1)
        assert near.any(dim=1).all() and len(set(positions.tolist())) == 4
        rows = features(taught, candidates)
        at_random = [cost(rows, torch.randperm(20, generator=torch.Generator().manual_seed(i))[:4]) for i in range(50)]
        assert cost(rows, positions) <= torch.stack(at_random).quantile(0.1)


def test_covering_takes_one_of_each_cluster_and_the_first_of_equals():
    rows = torch.tensor([[0.0], [0.1], [0.2], [9.0], [9.1], [9.2], [50.0]])
    assert covering(rows, 1).tolist() == [5]
    assert covering(rows, 3).tolist() == [1, 5, 6]
    assert covering(torch.zeros(5, 2), 3).tolist() == [0, 1, 2]
    assert covering(rows, 7).tolist() == list(range(7))


@pytest.mark.parametrize("ipc", [3, {"Bag": 70, "Coat": 2}])
def test_a_choice_is_the_same_in_any_batch_worker_and_order(taught, ipc):
    dataset = DiMDataset(taught, ipc, seed=1, choose_from=3)
    dataset.set_epoch(2)
    positions = torch.arange(len(dataset))
    whole, labels = dataset.make(2, positions)
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))
    again = DiMDataset(taught, ipc, seed=1, choose_from=3)
    parts = torch.cat([again.make(2, part)[0] for part in order.split(5)])
    torch.testing.assert_close(parts, whole[order])
    loaded, of_loaded = everything(DataLoader(dataset, 4, num_workers=2, multiprocessing_context=FORKED))
    torch.testing.assert_close(loaded, whole)
    assert torch.equal(of_loaded, labels)
    # Groups of 64 are chosen from what they alone draw, so a class may be of any size.
    if ipc != 3:
        drawn = DiMDataset(taught, {"Bag": 210}, seed=1).make(2, torch.arange(210))[0]
        of_last = torch.isclose(whole[labels == 2][64:, None], drawn, atol=1e-5).flatten(2).all(dim=2)
        assert of_last.int().argmax(dim=1).min() >= 192 and of_last.any(dim=1).all()


def test_every_epoch_is_chosen_anew_and_follows_the_weights():
    pipe = make_pipeline(labeler=True)
    stream = GeneratedStream(pipe, 2, 0, 6, choose_from=4)
    first, second = (next(stream.batches(epoch))[0].clone() for epoch in range(2))
    assert not torch.isclose(first, second).flatten(1).all(dim=1).any()
    with torch.no_grad():
        pipe.generator.conv_out.weight.mul_(-1)
    changed, _ = next(stream.batches(1))
    fresh, _ = next(GeneratedStream(pipe, 2, 0, 6, choose_from=4).batches(1))
    assert torch.equal(changed, fresh)
    # Blocks of several epochs hold the same.
    blocks = GeneratedStream(pipe, 2, 0, 6, block_size=18, choose_from=4)
    assert [len(blocks._make_block(0)), blocks.block_steps] == [3, 3]
    torch.testing.assert_close([images for epoch in range(2) for images, _ in blocks.batches(epoch)][1], fresh)


# With real data


def real_data(names, count=6, image="img", label="kind"):
    features = datasets.Features({image: datasets.Image(), label: datasets.ClassLabel(names=names)})
    pictures = [Image.new("L", (8, 8), 7) for _ in range(count)]
    return datasets.Dataset.from_dict({image: pictures, label: [0] * count}, features=features)


def test_interleaved_with_real_data_classes_are_matched_by_name(pipe):
    real = real_data(["Shoe", "Bag", "Coat", "T-shirt"], count=7)
    generated = DiMDataset(pipe, 2).to_iterable_dataset(features=real.features)
    mixed = datasets.interleave_datasets([real.to_iterable_dataset(), generated])
    rows = list(mixed)
    # The generated ones have no end, so the real ones decide the length.
    assert len(rows) == 13 and mixed.features == real.features
    assert {row["img"].getpixel((0, 0)) for row in rows[::2]} == {7}
    assert sorted(row["kind"] for row in rows[1::2]) == [1, 1, 2, 2, 3, 3]


def test_an_endless_stream_is_fresh_in_every_epoch_and_shared_by_workers(pipe):
    dataset = DiMDataset(pipe, 2)
    rows = list(dataset.to_iterable_dataset().take(12))
    pictures = {row["image"].tobytes() for row in rows}
    assert len(pictures) == 12
    for epoch in range(2):
        assert sorted(row["label"] for row in rows[6 * epoch : 6 * epoch + 6]) == [0, 0, 1, 1, 2, 2]
    shared = dataset.to_iterable_dataset(num_shards=2)
    parts = [list(shared.shard(2, index).take(6)) for index in range(2)]
    assert {row["image"].tobytes() for part in parts for row in part} == pictures
    # As workers that are not forked get it.
    sent = pickle.loads(pickle.dumps(shared))
    assert [row["image"].tobytes() for row in sent.take(4)] == [row["image"].tobytes() for row in shared.take(4)]
    dataset.set_epoch(1)
    later = {row["image"].tobytes() for row in dataset.to_iterable_dataset().take(6)}
    assert later == {row["image"].tobytes() for row in rows[6:]}


def test_a_class_name_clash_is_refused(pipe):
    real = real_data(["T-shirt", "Jacket", "Bag"])
    for refused in (
        lambda: DiMDataset(pipe, 2).to_iterable_dataset(features=real.features),
        lambda: pipe.to_dataset(2, features=real.features),
    ):
        with pytest.raises(
            ValueError, match="`features` has the classes T-shirt, Jacket, Bag; the pipeline also generates Coat"
        ):
            refused()
    assert len(pipe.to_dataset(2, class_labels=["Bag", 0], features=real.features)) == 4


def test_features_without_one_image_and_one_label_column_are_refused(pipe):
    features = datasets.Features({"a": datasets.Image(), "b": datasets.Image(), "label": datasets.Value("int64")})
    with pytest.raises(ValueError, match=r"`features` has the Image columns a, b; valid is exactly one"):
        DiMDataset(pipe, 2).to_iterable_dataset(features=features)


def test_soft_labels_do_not_fit_a_column_of_labels(taught):
    with pytest.raises(ValueError, match="`soft_labels` is True; a column of class labels"):
        DiMDataset(taught, 2, soft_labels=True).to_iterable_dataset()
