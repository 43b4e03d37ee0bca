"""What the stages share: the results so far, the data, the device and the deadline."""

import argparse
import gc
import json
import math
import os
import platform
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import accelerate
import diffusers
import torch

from dim_hf.data.image_data import ImageData
from dim_hf.evaluation.judges import DeploymentRecipe, Stream, train_classifier
from dim_hf.files import read_json, replace_text
from dim_hf.machine import processor

from .step import WAYS, Run


NEEDS_CUDA = "skipped: needs CUDA"
NO_TIME = "left out: no time"


class Report:
    """What is known so far, in one JSON file that is replaced after every row."""

    def __init__(self, path: Path, args: argparse.Namespace, device: torch.device):
        self.path, self.device, self.end = path, device, math.inf
        self.failed: list[str] = []
        before = read_json(path) if args.resume else None
        stages = before.get("stages", {}) if isinstance(before, dict) else {}
        self.content: dict[str, Any] = {"options": vars(args), "environment": machine(device), "stages": stages}

    def attempt(
        self,
        stage: str,
        row: str,
        function: Callable[..., Any],
        *arguments: Any,
        needs_cuda: bool = False,
        optional: bool = False,
    ) -> Any:
        """
        One row. Whatever goes wrong in it is written down with its place, and leaves the time that is left to the
        other rows; unless it is `optional`, it fails the command at its end. Gives `None` where the row has no result.
        """
        start, result = time.time(), None
        if needs_cuda and self.device.type != "cuda":
            entry: Any = NEEDS_CUDA
        elif start > self.end:
            entry = NO_TIME
        else:
            try:
                entry = result = function(*arguments)
                if result.get("passed") is False:
                    self.failed.append(f"{stage}: {row}")
            except Exception as error:
                if not optional:
                    self.failed.append(f"{stage}: {row}")
                places = [f"{Path(f.filename).name}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__)]
                entry = {"failed": f"{type(error).__name__}: {error}"[:600], "at": " ".join(places[-4:])}
            entry["seconds"] = round(time.time() - start, 2)
            if self.device.type == "cuda":
                # What the row has held, graphs too.
                gc.collect()
                torch.cuda.empty_cache()
        self.content["stages"].setdefault(stage, {})[row] = entry
        replace_text(self.path, json.dumps(self.content, indent=1))
        print(f"{stage}: {row}: {entry if isinstance(entry, str) else json.dumps(entry)[:300]}", flush=True)
        return result


@dataclass
class Bench:
    """What the stages share."""

    args: argparse.Namespace
    device: torch.device
    report: Report
    train: ImageData
    validation: ImageData
    test: ImageData
    deadline: float
    graph_is_right: bool = True
    convolutions: dict[tuple[str, int, str], dict[str, float]] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.train.size, self.train.channels, self.train.num_classes

    def run(self, preset: str, precision: str, way: str, **options: Any) -> Run:
        return Run(preset, self.shape, self.device, precision, WAYS[way], **options)


def machine(device: torch.device) -> dict[str, Any]:
    """What a figure depends on beside the code."""
    known = {
        "torch": torch.__version__, "diffusers": diffusers.__version__, "accelerate": accelerate.__version__,
        "python": platform.python_version(), "processor": processor(), "cores": os.cpu_count(),
    }  # fmt: skip
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        known |= {
            "device": properties.name,
            "compute_capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return known


def check_precision(precision: str, name: str, capability: tuple[int, int]) -> None:
    """Raises a `ValueError` if a card would emulate bfloat16."""
    if precision == "bf16" and capability < (8, 0):
        raise ValueError(
            f"`--precision` is bf16, which {name} does not have (compute capability {capability[0]}.{capability[1]}; "
            "it takes 8.0); valid here are fp16 and no."
        )


def checkpoint_dir(args: argparse.Namespace) -> Path:
    """Beside the output folder, which holds only results."""
    path = Path(args.output_dir).resolve()
    return path.with_name(f"{path.name}-checkpoints")


def trained_classifier(bench: Bench, source: Stream, recipe: DeploymentRecipe) -> torch.nn.Module:
    size, channels, _ = bench.shape
    return train_classifier(source, "convnet3", recipe, channels=channels, size=size, seed=0, device=bench.device)
