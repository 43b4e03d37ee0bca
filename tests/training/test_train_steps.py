"""Steps and validations of the training script, computed a second time."""

import copy
import json
import random

import pytest
import torch
import train_dim
from PIL import Image
from safetensors.torch import load_file
from test_train_dim import run, tiny_arguments
from torch.nn import functional as F

from dim_hf.data import ImageData, holdout, load_image_data, normalise
from dim_hf.distillation.augmentation import draw_augmentation
from dim_hf.distillation.pool import build_pool
from dim_hf.distillation.pool_recipe import PoolRecipe
from dim_hf.evaluation.judges import train_classifier
from dim_hf.evaluation.recipe import DeploymentRecipe
from dim_hf.models import DiMDiscriminator, DiMGenerator
from dim_hf.pipelines import DiMPipeline
from dim_hf.streams.generated import GeneratedStream
from dim_hf.streams.randomness import ShuffledOrder


CPU = torch.device("cpu")
# R1 is due in step 0, R2 in step 8; matching begins with step 5 and takes place in step 6 alone.
NINE_STEPS = [
    "--max_train_steps", "5", "--max_match_steps", "4", "--match_interval", "3", "--logging_steps", "1",
    "--learning_rate", "1e-3", "--discr_learning_rate", "5e-4", "--match_learning_rate", "2e-3",
    "--mixed_precision", "no",
]  # fmt: skip


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def tiny(cache_dir, tmp_path):
    return tiny_arguments(cache_dir, tmp_path)


def squared_gradients(discriminator, images, labels):
    images = images.detach().requires_grad_()
    logits = discriminator(images, labels).logits
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3))


def descend(optimizer, rate, loss):
    optimizer.param_groups[0]["lr"] = rate
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def steps_by_hand(args, configs):
    """The networks after nine steps, by their folders in a checkpoint, and the losses of each step."""
    train, _ = holdout(load_image_data("digits", cache_dir=args.cache_dir), args.validation_fraction, args.seed)
    recipe = PoolRecipe(steps=args.pool_steps, snapshots=1)
    (classifier,) = build_pool(args.pool, train, recipe, seed=args.seed, cache_dir=args.cache_dir, device=CPU)
    torch.manual_seed(args.seed)
    generator = DiMGenerator(**configs["generator_config"])
    discriminator = DiMDiscriminator(**configs["discriminator_config"])
    average = copy.deepcopy(generator)
    betas = (args.adam_beta1, args.adam_beta2)
    generator_optimizer = torch.optim.Adam(generator.parameters(), betas=betas)
    discriminator_optimizer = torch.optim.Adam(discriminator.parameters(), betas=betas)
    order = ShuffledOrder(len(train), args.seed, CPU)
    history = []
    for step in range(9):
        rng = random.Random(f"{args.seed}/{step}/0")
        noise = torch.Generator().manual_seed(rng.getrandbits(63))
        latents = torch.randn(8, generator.config.latent_dim, generator=noise)
        mix = torch.rand(8, 1, 1, 1, generator=noise)
        pixels, labels = train.batch(order.take(8 * step, 8))
        augment = draw_augmentation(args.augmentation, 8, rng)
        real, fake = augment(normalise(pixels)), augment(generator(latents, labels).sample)

        losses = {}
        of_real, of_fake = discriminator(real, labels), discriminator(fake.detach(), labels)
        if args.adversarial_loss == "hinge":
            loss = (1 - of_real.logits).clamp(min=0).mean() + (1 + of_fake.logits).clamp(min=0).mean()
        elif args.adversarial_loss == "wgan-gp":
            lengths = squared_gradients(discriminator, (1 - mix) * real + mix * fake, labels).sqrt()
            loss = of_fake.logits.mean() - of_real.logits.mean() + 10 * (lengths - 1).square().mean()
        else:
            loss = F.softplus(of_fake.logits - of_real.logits).mean()
        losses["discriminator"] = loss
        if args.class_loss_weight:
            losses["class_real"] = F.cross_entropy(of_real.class_logits, labels)
            loss = loss + args.class_loss_weight * losses["class_real"]
        # Every 16 steps, and as many times as strong.
        if args.r1_weight and step == 0:
            losses["r1"] = squared_gradients(discriminator, real, labels).mean() / 2
            loss = loss + 16 * args.r1_weight * losses["r1"]
        if args.r1_weight and step == 8 and args.adversarial_loss == "relativistic":
            losses["r2"] = squared_gradients(discriminator, fake, labels).mean() / 2
            loss = loss + 16 * args.r1_weight * losses["r2"]
        descend(discriminator_optimizer, 2e-3 if step >= 5 else 5e-4, loss)

        of_fake = discriminator(fake, labels)
        if args.adversarial_loss == "relativistic":
            loss = F.softplus(of_real.logits.detach() - of_fake.logits).mean()
        else:
            loss = -of_fake.logits.mean()
        losses["generator"] = loss
        if args.class_loss_weight:
            losses["class_fake"] = F.cross_entropy(of_fake.class_logits, labels)
            loss = loss + args.class_loss_weight * losses["class_fake"]
        if step == 6:
            if args.match_loss == {"class": 1.0}:
                losses["matching"] = F.cross_entropy(classifier(fake), labels)
            else:
                of_pool = [classifier(images).log_softmax(dim=1) for images in (real, fake)]
                losses["matching"] = args.match_loss["pairwise"] * (of_pool[0] - of_pool[1]).square().mean()
            loss = loss + losses["matching"]
        descend(generator_optimizer, 2e-3 if step >= 5 else 1e-3, loss)
        decay = min(args.ema_decay, (1 + step) / (10 + step))
        for mean, value in zip(average.state_dict().values(), generator.state_dict().values(), strict=True):
            if value.is_floating_point():
                mean.copy_(decay * mean + (1 - decay) * value)
        history.append({f"loss/{name}": value.item() for name, value in losses.items()})
    return {"generator": generator, "discriminator": discriminator, "ema_generator": average}, history


@pytest.mark.parametrize(
    "more",
    [
        ["--adversarial_loss", "hinge", "--seed", "3", "--augmentation", "shift", "flip"],
        ["--adversarial_loss", "wgan-gp", "--class_loss_weight", "0.5", "--r1_weight", "0", "--match_loss",
         "pairwise=50", "--augmentation", "shift", "color"],
        ["--adversarial_loss", "relativistic", "--class_loss_weight", "0.2", "--ema_decay", "0.2", "--adam_beta1",
         "0.3", "--augmentation", "shift", "cutout", "color"],
    ],
    ids=["hinge", "wgan-gp", "relativistic"],
)  # fmt: skip
def test_steps_are_those_of_the_formulas(tiny, tmp_path, more):
    arguments = tiny("run", *NINE_STEPS, *more)
    run(arguments)
    configs = json.loads((tmp_path / "run" / "options.json").read_text())
    networks, history = steps_by_hand(train_dim.parse_args(arguments), configs)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    for line, expected in zip(lines, history, strict=True):
        losses = {name: value for name, value in line.items() if name.startswith("loss/")}
        assert losses == pytest.approx(expected, rel=1e-3, abs=1e-5), f"step {line['step']}"
    for name, network in networks.items():
        weights = load_file(tmp_path / "run" / "checkpoint-9" / name / "diffusion_pytorch_model.safetensors")
        for key, expected in network.state_dict().items():
            # It shifts all logits alike: its gradients cancel but for rounding errors, which Adam magnifies.
            if expected.is_floating_point() and key != "adversarial_head.bias":
                torch.testing.assert_close(
                    weights[key], expected, rtol=0, atol=1e-4, msg=lambda text, key=key: f"{key}: {text}"
                )


def test_a_validation_scores_the_images_that_were_held_out(tiny, tmp_path, cache_dir):
    # Dark images of one class and bright ones of the other; those that are held out have the other's brightness.
    rows, labels = torch.arange(40), torch.arange(40) // 20
    numbered = ImageData(rows[:, None, None, None], labels, ("a", "b"), "x")
    held_out_rows = holdout(numbered, 0.3)[1].images.flatten().tolist()
    for row, label in zip(rows.tolist(), labels.tolist(), strict=True):
        path = tmp_path / "set" / "ab"[label] / f"{row:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        bright = (label == 1) != (row in held_out_rows)
        Image.new("L", (8, 8), 200 if bright else 50).save(path)
    run(
        tiny(
            "run", "--train_data_dir", str(tmp_path / "set"), "--validation_fraction", "0.3", "--max_train_steps",
            "40", "--max_match_steps", "0", "--learning_rate", "1e-2", "--discr_learning_rate", "1e-2",
            "--class_loss_weight", "1", "--validation_epochs", "20", "--mixed_precision", "no",
        )
    )  # fmt: skip
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])

    stream = GeneratedStream(DiMPipeline.from_pretrained(tmp_path / "run").generator, 10, seed=0, batch_size=64)
    recipe = DeploymentRecipe(epochs=20)
    classifier = train_classifier(stream, "convnet3", recipe, channels=1, size=8, seed=0, device=CPU)
    train, held_out = holdout(load_image_data(train_data_dir=tmp_path / "set", cache_dir=cache_dir), 0.3)
    of_train, of_held_out = (
        (classifier(normalise(part.images)).argmax(dim=1) == part.labels).sum().item() / len(part)
        for part in (train, held_out)
    )
    assert last["validation/accuracy"] == of_held_out
    assert of_train - of_held_out > 0.5
