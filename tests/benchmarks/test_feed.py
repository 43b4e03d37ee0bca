"""The feed benchmark, run as a user runs it, and that it compares like with like."""

import json

import feed
import pytest
import torch

from dim_hf.models import DiMGenerator
from dim_hf.streams.generated import GeneratedStream


def test_memory_holds_the_very_images_of_the_stream():
    stream = GeneratedStream(DiMGenerator(2, 8, 1, 4, 4, (4,), (0,)), 3, 0, 4)
    memory = feed.MemoryStream(stream)
    for (images, labels), (kept, kept_labels) in zip(stream.batches(0), memory.batches(5), strict=True):
        assert torch.equal(images, kept) and torch.equal(labels, kept_labels)
    loaded = torch.cat([labels for _, labels in feed.LoaderStream(stream, 4).batches(1)])
    assert torch.bincount(loaded).tolist() == [3, 3] and stream.dataset.epoch == 1


def test_every_feed_beside_memory(tmp_path, capsys):
    arguments = ["--ipc", "4", "--batch_size", "20", "--intervals", "2", "--interval_epochs", "1"]
    feed.main(feed.parse_args([*arguments, "--json", str(tmp_path / "out.json")]))
    report = json.loads((tmp_path / "out.json").read_text())
    assert [row["feed"] for row in report["results"]] == ["memory", "stream", "data loader"]
    assert report["results"][0]["ratio"] == 1
    for row in report["results"]:
        assert 0 < row["lowest_ratio"] <= row["ratio"] <= row["highest_ratio"] and row["intervals"] == 2
    assert report["options"]["ipc"] == 4 and report["environment"]["torch"] == torch.__version__
    assert "ms per step" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--intervals", "0"], "`--intervals` is 0; it must be at least 1"),
        (["--json", "/nowhere/out.json"], "`--json` /nowhere/out.json cannot be written"),
        (["--json", __file__], "`--json` .* exists and does not hold figures of this script"),
    ],
)
def test_a_wrong_argument_is_named(more, message):
    with pytest.raises((ValueError, OSError), match=message):
        feed.parse_args(more)
