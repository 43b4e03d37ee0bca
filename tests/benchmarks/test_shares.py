"""The shares of the convolutions' rate, run as a user runs them."""

import json

import processes
import pytest
import shares
import torch


@pytest.mark.slow
def test_a_row_of_each_preset(tmp_path):
    arguments = ["--resolutions", "8", "--channels", "1", "--batch_size", "8", "--paper_batch_size", "2"]
    result = processes.run([shares.__file__, *arguments, "--repeats", "1", "--json", tmp_path / "out.json"])
    assert result.returncode == 0, result.stderr[-2000:]
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert [(row["preset"], row["resolution"]) for row in rows] == [("base", 8), ("paper", 8)]
    for row in rows:
        assert 0 < row["slowest"] <= row["images_per_second"] <= row["fastest"]
        assert 0 < row["share"] < 2 and row["released_over_ours"] > 0 and row["gigaflop_per_image"] > 0
        assert sum(row["profile"].values()) == pytest.approx(1)
        assert {"convolutions", "optimiser", "norms", "activations"} <= row["profile"].keys()
    assert "r1_over_plain" in rows[0] and "r1_over_plain" not in rows[1]


def test_the_profile_says_where_the_time_goes():
    images, kernel = torch.randn(4, 16, 32, 32), torch.randn(64, 16, 3, 3)
    found = shares.profile(lambda: torch.nn.functional.conv2d(images, kernel), 2, torch.device("cpu"))
    assert next(iter(found)) == "convolutions"
    weight = torch.zeros(2**20, requires_grad=True)
    weight.grad = torch.ones(2**20)
    optimizer = torch.optim.Adam([weight])
    optimizer.step()
    assert shares.profile(optimizer.step, 1, torch.device("cpu"))["optimiser"] > 0.9


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--resolutions", "30"], "`resolution` 30 is a size that the generator cannot make"),
        (["--repeats", "0"], "`--repeats` is 0; it must be at least 1"),
    ],
)
def test_a_wrong_argument_is_named(more, message):
    with pytest.raises(ValueError, match=message):
        shares.parse_args(more)


def test_a_gpu_without_bfloat16_is_refused_with_this_scripts_flag(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100")
    with pytest.raises(ValueError, match="`--precision` is 'bf16', which Tesla V100 does not compute in"):
        shares.main(shares.parse_args(["--precision", "bf16"]))
