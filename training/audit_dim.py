"""
Measures what a distilled data set gives away of the images that it was trained on.

    python training/audit_dim.py                                                  # out/digits, an hour at most
    python training/audit_dim.py --pipeline out/mri --dataset_name path/to/mri --budget 300
    python training/audit_dim.py --pipeline distilled/mnist --dataset_name ylecun/mnist --tests copies \
        --output_dir out/audit-mnist --export_dir distilled/mnist

Copies: are generated images nearer to training images than to others? Membership: can an attacker tell who was in the
training images from the weights, the images, a classifier trained on them, or a teacher's labels (LiRA)? For that the
whole training is run again, on random halves of the images, as often as `--budget` allows. The cost is told first.

The output folder gets audit.json, report.html and closest.png. What is finished in it, in pipeline/ and shadows/, is
not run again, and several processes with the same arguments share the shadow runs. The model card has the result.
"""

from audit_arguments import parse_args
from command_line import parse_before_imports, run_script


if __name__ == "__main__":
    ARGS = parse_before_imports("audit_dim.py", parse_args)

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import Accelerator
from audit_inputs import (
    Audited,
    check,
    check_identity,
    identity,
    load,
    membership_settings,
    prepare_candidates,
)
from audit_plan import (
    as_json,
    choose,
    copies_seconds,
    extend,
    fresh_classifier,
    measure_speed,
    minutes,
    options_match_steps,
)
from audit_shadows import add_teacher, clear, last_discriminator, membership, save_half, shadow_words, train_shadow
from diffusers.utils import logging
from filelock import FileLock, Timeout
from safetensors.torch import load_file, save_file
from torch import nn

from dim_hf.audit.candidates import Union, half
from dim_hf.audit.copies import find_copies
from dim_hf.audit.findings import find
from dim_hf.audit.lira import IN, OUT, attack_figures, leave_one_out, lira_scores, standardised
from dim_hf.audit.names import CANARIES
from dim_hf.audit.report import AUDIT_FORMAT, audit_pictures, audit_tables, describe_audit, of_folder
from dim_hf.audit.signals import feature_rows, make_images, measure, pixel_rows
from dim_hf.classifiers import build_classifier, public_name
from dim_hf.distillation.checkpointing import checkpoints
from dim_hf.evaluation.html_report import draw_pairs, write_page
from dim_hf.files import lock_output_dir, read_json, replace_text, whole_file
from dim_hf.hub.push import export_repository, prepare_repository
from dim_hf.machine import environment, keep_freed_memory
from dim_hf.models import DiMDiscriminator
from dim_hf.pipelines import DiMPipeline
from dim_hf.weights import weights_digest


# Leave-one-out takes runs with each image, and without it, beside the one under attack.
LEAST_FOR_ONLINE = 4
PAIRS_SHOWN, COLUMNS = 24, 6


def main(args: argparse.Namespace) -> dict[str, Any]:
    keep_freed_memory()
    # 1. Settings, folders and images are checked before any work.
    output, options = check(args)
    precision = (options or {}).get("mixed_precision") or "no"
    accelerator = Accelerator(mixed_precision=precision)
    audited = load(args, options, accelerator)
    settings = identity(args, audited)
    check_identity(args, output, settings)
    union, candidates = prepare_candidates(args, audited) if "membership" in args.tests else (None, torch.empty(0))
    if args.push_to_hub:
        args.hub_model_id = prepare_repository(
            args.hub_model_id or Path(args.pipeline).resolve().name, args.hub_token, args.hub_private_repo or None
        )
    run = Audit(args, output, audited, union, candidates)
    # Bars of what is done in between would hide what this script says.
    datasets.disable_progress_bars()
    logging.disable_progress_bar()

    # 2. The plan, and what it costs. One process at a time.
    plan = make_plan(run, settings)

    # 3. The pipeline, then the shadow runs that no other process has.
    classifier = examine_pipeline(run)
    if "membership" in args.tests:
        run_shadows(run, plan, classifier)

    # 4. The figures and reports.
    with alone_in(output):
        audit = conclude(run, plan)
        publish(run)
    return audit


@dataclass(frozen=True)
class Audit:
    """What the stages share. Without membership there is no union."""

    args: argparse.Namespace
    output: Path
    audited: Audited
    union: Union | None
    candidates: torch.Tensor

    @property
    def matching_steps(self) -> int:
        assert self.audited.options is not None
        return options_match_steps(self.audited.options, len(self.audited.train))

    @property
    def steps(self) -> int:
        """Training steps of the run that is audited."""
        assert self.audited.options is not None
        return self.audited.options["adversarial_steps"] + self.matching_steps


@contextmanager
def alone_in(output: Path) -> Iterator[None]:
    """Waits until no other process plans or concludes an audit in the folder."""
    lock = lock_output_dir(output, "audit_dim.py", wait=True)
    try:
        yield
    finally:
        lock.release()


def make_plan(run: Audit, settings: dict[str, Any]) -> dict[str, Any]:
    """Reads the plan of the folder, or makes one; a larger budget adds shadow runs."""
    args, output = run.args, run.output
    with alone_in(output):
        check_identity(args, output, settings)
        plan = read_json(output / "plan.json") or {"settings": settings}
        if "copies" in args.tests and not (output / "pipeline" / "copies.json").is_file():
            print(f"copies: about {minutes(copies_seconds(args, run.audited))}")
        if run.union is not None:
            budget = 60 * args.budget
            if "shadows" in plan:
                chosen = extend(plan, budget, run.steps)
                plan |= {"shadows": chosen.shadows, "seconds": chosen.seconds}
            else:
                print("timing some steps of a shadow run")
                speed = measure_speed(args, run.audited, run.union, len(run.candidates), output / ".probe.incomplete")
                chosen = choose(budget, speed, run.steps)
                plan |= as_json(chosen, speed)
                plan["settings"] |= {"membership": membership_settings(args)}
            print(chosen)
        replace_text(output / "plan.json", json.dumps(plan, indent=2))
    return plan


def examine_pipeline(run: Audit) -> nn.Module:
    """
    Trains a classifier on the pipeline's images, compares these with real ones, and measures the candidates. What the
    folder has of that is not done again.

    Returns:
        The classifier, whose features are those of all comparisons.
    """
    args, audited, folder = run.args, run.audited, run.output / "pipeline"
    folder.mkdir(parents=True, exist_ok=True)
    # Other processes wait here for the first one.
    with FileLock(folder / ".lock"):
        if (folder / "classifier.safetensors").is_file():
            config = audited.pipeline.generator.config
            classifier = build_classifier(args.classifier, config.num_classes, config.out_channels, config.sample_size)
            classifier.load_state_dict(load_file(folder / "classifier.safetensors"))
            classifier.to(audited.pipeline.generator.device).eval()
        else:
            print(f"a {public_name(args.classifier)} is trained on generated images")
            classifier = fresh_classifier(args, audited.pipeline, args.epochs)
            save_tensors(classifier.state_dict(), folder / "classifier.safetensors")
        if "copies" in args.tests and not (folder / "copies.json").is_file():
            print("generated images are compared with training and held-out ones")
            compare_images(run, classifier, folder)
        if run.union is not None and not (folder / "signals.safetensors").is_file():
            print("the candidates are measured on the pipeline")
            signals = measure_candidates(run, audited.pipeline, classifier, classifier, audited.discriminator)
            save_tensors(signals, folder / "signals.safetensors")
    return classifier


def compare_images(run: Audit, classifier: nn.Module, folder: Path) -> None:
    """Writes copies.json, and the picture of the closest pairs."""
    train, held_out = (data.to(torch.device("cpu")) for data in (run.audited.distinct, run.audited.held_out))
    made = make_images(run.audited.pipeline, run.args.samples, run.args.seed)
    figures: dict[str, Any] = {"generated": len(made.labels), "classifier": public_name(run.args.classifier)}
    images = (made.pixels, train.images, held_out.images)
    labels = (made.labels, train.labels, held_out.labels)
    for space in ("pixels", "features"):
        rows = [pixel_rows(each) if space == "pixels" else feature_rows(classifier, each) for each in images]
        figures[space], nearest = find_copies(
            rows[0], labels[0], rows[1], labels[1], rows[2], labels[2], run.args.seed
        )
        if space == "pixels":
            # One pair for each training image, the last to be set being the nearest.
            nearest_first = nearest.to_train.argsort().tolist()
            of_image = {int(nearest.train[i]): i for i in reversed(nearest_first)}
            closest = sorted(of_image.values(), key=nearest_first.index)[:PAIRS_SHOWN]
            picture = draw_pairs(made.pixels[closest], train.images[nearest.train[closest]], COLUMNS)
            with whole_file(run.output / "closest.png") as aside:
                picture.save(aside, format="PNG")
    replace_text(folder / "copies.json", json.dumps(figures))


def measure_candidates(
    run: Audit,
    pipeline: DiMPipeline,
    classifier: nn.Module,
    features_of: nn.Module,
    discriminator: DiMDiscriminator | None,
) -> dict[str, torch.Tensor]:
    assert run.union is not None
    data = run.union.data
    return measure(
        pipeline,
        classifier,
        features_of,
        data.stored[run.candidates],
        data.labels[run.candidates],
        per_class=run.args.samples,
        inversion_steps=run.args.inversion_steps,
        seed=run.args.seed,
        discriminator=discriminator,
    )


def run_shadows(run: Audit, plan: dict[str, Any], features_of: nn.Module) -> None:
    """Trains and measures the shadow runs, those first that no other process has; waits for the others at the end."""
    left = []
    for number in range(plan["shadows"]):
        lock = shadow_lock(run, number)
        try:
            with lock.acquire(timeout=0):
                run_shadow(run, plan, number, features_of)
        except Timeout:
            left.append(number)
    for number in left:
        # If the other process was killed, this one goes on with its run.
        with shadow_lock(run, number):
            run_shadow(run, plan, number, features_of)


def shadow_lock(run: Audit, number: int) -> FileLock:
    folder = run.output / "shadows"
    folder.mkdir(exist_ok=True)
    return FileLock(folder / f".{number:03d}.lock")


def run_shadow(run: Audit, plan: dict[str, Any], number: int, features_of: nn.Module) -> None:
    """One shadow run: trained, measured, and cleared of what is large; nothing if that is done."""
    folder, args, options, union = run.output / "shadows" / f"{number:03d}", run.args, run.audited.options, run.union
    assert options is not None and union is not None
    if (folder / "signals.safetensors").is_file():
        # A process that was killed may have left what is large.
        clear(folder)
        return
    print(f"shadow run {number + 1} of {plan['shadows']}", flush=True)
    positions = half(union, number, args.seed)
    data = union.data.select(positions)
    words = shadow_words(options, folder, run.matching_steps, plan["share"], number, args.seed)
    trained = (folder / "membership.safetensors").is_file()
    if not trained or (run.audited.discriminator is not None and not checkpoints(folder / "run")):
        if not (folder / "images.parquet").is_file():
            save_half(data, folder / "images.parquet")
        train_shadow(words, folder)
        if run.audited.pipeline.labeler is not None:
            add_teacher(folder, run.audited.teacher)
        seed = int(words[words.index("--seed") + 1])
        found = membership(data, positions, options["validation_fraction"], seed, len(union.data))
        save_tensors({"membership": found[run.candidates].to(torch.int8)}, folder / "membership.safetensors")
    device = run.audited.pipeline.generator.device
    shadow = DiMPipeline.from_pretrained(folder / "run").to(device)
    discriminator = None
    if run.audited.discriminator is not None:
        discriminator = DiMDiscriminator.from_pretrained(last_discriminator(folder)).to(device)
    classifier = fresh_classifier(args, shadow, args.epochs)
    signals = measure_candidates(run, shadow, classifier, features_of, discriminator)
    save_tensors(signals, folder / "signals.safetensors")
    clear(folder)


def save_tensors(tensors: dict[str, torch.Tensor], path: Path) -> None:
    with whole_file(path) as aside:
        save_file({name: value.contiguous().cpu() for name, value in tensors.items()}, aside)


def conclude(run: Audit, plan: dict[str, Any]) -> dict[str, Any]:
    """Writes audit.json and report.html from what the folder holds."""
    audited, output = run.audited, run.output
    held_out = "held out of train by the training" if run.args.validation else f"split {run.args.test_split}"
    # Of an audit of membership in the same folder, and so with the same settings.
    earlier = read_json(output / "audit.json") or {}
    audit: dict[str, Any] = {
        "format": AUDIT_FORMAT,
        "weights": weights_digest(audited.pipeline),
        "privacy": (audited.options or {}).get("privacy"),
        "run_known": audited.options is not None,
        "teacher_known": audited.teacher_known,
        "data": {
            "train": len(audited.train),
            "held_out": len(audited.held_out),
            "held_out_is": held_out,
            "held_out_equal_to_training": audited.overlap,
            "training_equal_to_held_out": len(audited.train) - len(audited.distinct),
        },
        "folder": audited.folder,
        "copies": read_json(output / "pipeline" / "copies.json"),
        "membership": attack(run, plan) if run.union is not None else earlier.get("membership"),
    }
    audit["findings"] = find(audit)
    audit["leak"] = any(each["level"] == "leak" for each in audit["findings"])
    audit |= {"settings": plan["settings"], "environment": environment()}
    replace_text(output / "audit.json", json.dumps(audit, indent=2))
    pictures = audit_pictures(output, audit)
    write_page(output / "report.html", "Audit", audited.pipeline, audit_tables(audit), pictures)
    beside = [each["text"] for each in audit["findings"] if each.get("where") == "folder"] + of_folder(audit)
    told = "\n".join([describe_audit(audit), "", *beside, ""] if beside else [describe_audit(audit), ""])
    print(f"\n{told}\nreport {output / 'audit.json'} and {output / 'report.html'}")
    return audit


def attack(run: Audit, plan: dict[str, Any]) -> dict[str, Any]:
    """The figures of membership inference, from the signals of the pipeline and of all shadow runs."""
    union, candidates = run.union, run.candidates
    assert union is not None
    folders = [run.output / "shadows" / f"{number:03d}" for number in range(plan["shadows"])]
    of_shadows = [load_file(folder / "signals.safetensors") for folder in folders]
    in_shadows = torch.stack([load_file(folder / "membership.safetensors")["membership"].long() for folder in folders])
    of_pipeline = load_file(run.output / "pipeline" / "signals.safetensors")
    planted = candidates >= union.num_train + union.num_held_out
    in_pipeline = torch.where(candidates < union.num_train, IN, OUT)
    figures: dict[str, Any] = {
        "shadows": plan["shadows"],
        "steps": round(plan["share"] * run.steps),
        "steps_of_the_run": run.steps,
        "pipeline": {},
        "runs": {},
        "canaries": {},
    }
    columns = torch.arange(len(candidates)).expand_as(in_shadows)
    for name, signal in of_pipeline.items():
        # Canaries were not planted in the pipeline, and are unlike the others.
        signals = standardised(torch.stack([signal, *(each[name] for each in of_shadows)]).double(), ~planted)
        scores = lira_scores(signals[0, ~planted], signals[1:, ~planted], in_shadows[:, ~planted], online=False)
        figures["pipeline"][name] = attack_figures(scores, in_pipeline[~planted])
        if len(folders) < LEAST_FOR_ONLINE:
            continue
        groups = {"": ~planted} | {kind: torch.isin(candidates, union.of_kind(kind)) for kind in CANARIES}
        for kind, chosen in groups.items():
            if not chosen.any():
                continue
            scores = leave_one_out(signals[1:, chosen], in_shadows[:, chosen])
            found = attack_figures(scores.flatten(), in_shadows[:, chosen].flatten(), columns[:, chosen].flatten())
            (figures["canaries"].setdefault(kind, {}) if kind else figures["runs"])[name] = found
    return figures


def publish(run: Audit) -> None:
    args, pipeline = run.args, run.audited.pipeline
    if args.export_dir:
        export_repository(pipeline, args.export_dir, token=args.hub_token, audit_dir=run.output)
        print(f"exported to {args.export_dir}")
    if args.push_to_hub:
        url = pipeline.push_to_hub(
            args.hub_model_id, token=args.hub_token, private=args.hub_private_repo or None, audit_dir=run.output
        )
        print(f"pushed to {args.hub_model_id}: {url}")


if __name__ == "__main__":
    run_script(
        "audit_dim.py",
        lambda: main(ARGS),
        "What is finished in the output folder is kept, with checkpoints of shadow runs; the same command goes on.",
    )
