"""Reports: figures by hand, a picture that shows what it says, files that are whole."""

import json
import os
import platform
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from PIL import Image

from dim_hf.data import ImageData
from dim_hf.evaluation.recipe import DeploymentRecipe
from dim_hf.evaluation.sample_grid import GAP, save_sample_grid
from dim_hf.evaluation.tables import Row, describe_protocol, results_table, write_report
from dim_hf.machine import environment
from dim_hf.models import DiMGenerator
from dim_hf.pipelines import DiMPipeline


ROWS = [
    Row(
        "generated images", "convnet3", 10, 2000, 100000, 2**20, 10, [0.85, 0.86, 0.87], 61.4, "B", "hard", True, False
    ),
    Row("real subset", "resnet18", 1, 2000, 10, 2**19, 10, [0.5], 60.0, "A, B", "soft", False, True),
]


def test_bits_per_class():
    # 2**20 bytes of ten classes.
    assert ROWS[0].bits_per_class == pytest.approx(838_860.8)


def test_mean_and_standard_deviation_of_the_sample():
    assert ROWS[0].mean == pytest.approx(0.86) and ROWS[0].std == pytest.approx(0.01)
    assert ROWS[1].std is None


def test_table():
    lines = results_table(ROWS).splitlines()
    assert len(lines) == 4 and len({len(line) for line in lines}) == 1
    cells = [cell.strip() for cell in lines[2].strip("|").split("|")]
    assert cells == [
        "generated images",
        "B",
        "convnet3",
        "10",
        "2,000",
        "100,000",
        "1.00 MiB",
        "838,861",
        "86.00 ± 1.00",
        "3",
        "61.4",
    ]
    assert "512.00 KiB" not in lines[3] and "0.50 MiB" in lines[3]
    assert "50.00 " in lines[3] and "±" not in lines[3]
    assert lines[3].startswith("| real subset, soft labels, no augmentation | A, B ")


def test_a_few_bytes_are_no_zero():
    assert " 1.25 KiB " in results_table([replace(ROWS[0], bytes=1280)])


def test_the_protocol_says_how_little_few_seeds_tell():
    images = ImageData(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.arange(4) % 2, ("a", "b"), "black")

    def describe(*seeds):
        return describe_protocol(["B"], {10: DeploymentRecipe()}, seeds, images, "split test", 100, 3.0)

    assert "one seed, so no spread is known" in describe(4)
    # 1 / sqrt(2) of itself with two seeds and 1 / sqrt(8) with five.
    assert "seeds 4, 7 (over 2 seeds this standard deviation is itself uncertain by about 71 %)" in describe(4, 7)
    assert "uncertain by about 35 %" in describe(0, 1, 2, 3, 4)
    assert "excludes variance between training runs" in describe(0, 1)


def test_report_files(tmp_path):
    write_report(tmp_path, ROWS, "Protocol B.", {"options": {"ipc": [10]}})
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert [metrics["rows"][0][name] for name in ("bytes", "bits_per_class")] == [2**20, ROWS[0].bits_per_class]
    assert metrics["rows"][0]["accuracies"] == [0.85, 0.86, 0.87] and metrics["options"] == {"ipc": [10]}
    report = (tmp_path / "report.md").read_text()
    assert results_table(ROWS) in report and "![" in report and "Protocol B." in report
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.json", "report.md"]
    # As readable for others as any new file.
    (tmp_path / "new").touch()
    assert (tmp_path / "report.md").stat().st_mode == (tmp_path / "new").stat().st_mode


def test_environment_names_versions_and_machine():
    found = environment()
    assert found["torch"] == torch.__version__ and found["device"] and found["dim_hf"]
    assert json.dumps(found)


@pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="AVX-512 is of x86 processors")
def test_bfloat16_that_is_emulated_is_warned_of():
    # torch reads from the environment which instructions it may use.
    code = (
        "import torch, warnings; from dim_hf.machine import check_bfloat16 as check; "
        "warnings.simplefilter('error'); check('no', torch.device('cpu')); check('bf16', torch.device('mps')); "
        "warnings.simplefilter('always'); check('bf16', torch.device('cpu'))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"ATEN_CPU_CAPABILITY": "avx2"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stderr.count("bf16 is emulated on this processor (AVX2, no AVX-512)") == 1


def test_sample_grid_shows_the_pipelines_images(tmp_path):
    torch.manual_seed(0)
    pipeline = DiMPipeline(DiMGenerator(3, 8, 1, 6, 4, (8,), (0,)), {0: "cat", 1: "dog", 2: "a long name"})
    pipeline.set_progress_bar_config(disable=True)
    save_sample_grid(pipeline, tmp_path / "new" / "grid.png", columns=4)
    grid = Image.open(tmp_path / "new" / "grid.png")
    cell = grid.height // 3
    expected = pipeline(ipc=4, generator=torch.Generator().manual_seed(0)).images
    for row in range(3):
        for column in range(4):
            left, top = grid.width - (4 - column) * cell, row * cell
            tile = grid.crop((left, top, left + cell - GAP, top + cell - GAP)).convert("L")
            shown = tile.resize((8, 8), Image.Resampling.NEAREST)
            assert shown.tobytes() == expected[row * 4 + column].tobytes()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["grid.png"]
