"""
The adversarial step of `training/train_dim.py` as a function, in several execution modes, and its measurement.

[`Run.step`] is the code of the script's loop without matching and accumulation: the same functions of the library in
the same order, under Accelerate, with the same presets. A `Way` decides only how the device executes it.
"""

import copy
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from presets import PRESETS, network_configs
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from dim_hf.data.image_data import ImageData, normalise
from dim_hf.distillation.augmentation import draw_augmentation
from dim_hf.distillation.averages import update_average
from dim_hf.distillation.losses import (
    R1_INTERVAL,
    class_loss,
    generator_loss,
    gradient_penalty,
    hinge_discriminator_loss,
    r1_penalty,
    wasserstein_discriminator_loss,
)
from dim_hf.models import DiMDiscriminator, DiMGenerator
from dim_hf.streams.randomness import ShuffledOrder


DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Way:
    """How a step is run: in which layout, whether cuDNN tries its algorithms out, compiled, as a CUDA graph."""

    channels_last: bool = False
    cudnn_benchmark: bool = False
    compiled: bool = False
    graph: bool = False


WAYS = {
    "as train_dim.py": Way(),
    "tuned": Way(channels_last=True, cudnn_benchmark=True),
    "graph": Way(channels_last=True, cudnn_benchmark=True, graph=True),
    "compiled": Way(channels_last=True, cudnn_benchmark=True, compiled=True),
    "compiled graph": Way(channels_last=True, cudnn_benchmark=True, compiled=True, graph=True),
}


class Run:
    """
    Both networks of a preset, the generator's average, their optimisers, and the step that trains them.

    There is one at a time: Accelerate keeps one precision per process, and a new run starts it anew.

    Args:
        preset (`str`): Of `training/presets.py`.
        shape (`tuple[int, int, int]`): Size, channels and number of classes of the data.
        rate_factor (`float`): Of the preset's learning rates.
        augmentation (`Sequence[str]`): See [`draw_augmentation`]; none of it fits into a graph.
    """

    def __init__(
        self,
        preset: str,
        shape: tuple[int, int, int],
        device: torch.device,
        precision: str,
        way: Way,
        *,
        rate_factor: float = 1.0,
        augmentation: Sequence[str] = (),
        seed: int = 0,
    ):
        self.settings, self.way, self.device = PRESETS[preset], way, device
        self.augmentation, self.seed = list(augmentation), seed
        if way.graph and device.type != "cuda":
            raise ValueError("a CUDA graph needs a CUDA device.")
        if way.graph and precision == "fp16":
            raise ValueError(
                "a CUDA graph needs bf16 or float32: the gradient scaler of fp16 asks the host each step."
            )
        if way.graph and self.augmentation:
            raise ValueError("a CUDA graph takes no augmentation: its parameters are drawn anew in each step.")
        torch.backends.cudnn.benchmark = way.cudnn_benchmark
        AcceleratorState._reset_state(reset_partial_state=True)
        self.accelerator = Accelerator(mixed_precision=precision, cpu=device.type == "cpu")
        torch.manual_seed(seed)
        generator_config, discriminator_config = network_configs(preset, *shape)
        discriminator_config["auxiliary"] = self.settings["class_loss_weight"] > 0
        generator, discriminator = DiMGenerator(**generator_config), DiMDiscriminator(**discriminator_config)
        if way.channels_last or device.type == "cpu":
            generator.to(memory_format=torch.channels_last)
            discriminator.to(memory_format=torch.channels_last)
        self.ema_generator = copy.deepcopy(generator).to(device).eval().requires_grad_(False)
        generator_optimizer, discriminator_optimizer = (
            torch.optim.Adam(
                network.parameters(),
                lr=self.settings[f"{prefix}learning_rate"] * rate_factor,
                betas=(self.settings["adam_beta1"], self.settings["adam_beta2"]),
                capturable=way.graph,
            )
            for prefix, network in (("", generator), ("discr_", discriminator))
        )
        self.rates = [optimizer.defaults["lr"] for optimizer in (generator_optimizer, discriminator_optimizer)]
        self.generator, self.discriminator, self.generator_optimizer, self.discriminator_optimizer = (
            self.accelerator.prepare(generator, discriminator, generator_optimizer, discriminator_optimizer)
        )
        self.plain_generator = self.accelerator.unwrap_model(self.generator)
        self.plain_discriminator = self.accelerator.unwrap_model(self.discriminator)
        # The discriminator that the generator learns from; the penalties are of the plain one, because compiled code
        # has no second derivative.
        self.judge = self.plain_discriminator
        if way.compiled:
            self.generator = torch.compile(self.generator, dynamic=False)
            self.discriminator = self.judge = torch.compile(self.discriminator, dynamic=False)
        self.models = {
            "generator": self.plain_generator,
            "discriminator": self.plain_discriminator,
            "ema_generator": self.ema_generator,
        }
        self.set_rates(1.0)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.fixed: Batch = {}
        self.graph_losses: Batch = {}

    def set_rates(self, factor: float) -> None:
        """Sets the learning rates to a share of the full ones; in a graph they are tensors that it reads."""
        for optimizer, rate in zip((self.generator_optimizer, self.discriminator_optimizer), self.rates, strict=True):
            for group in optimizer.param_groups:
                if not self.way.graph:
                    group["lr"] = rate * factor
                elif isinstance(group["lr"], torch.Tensor) and group["lr"].device.type == self.device.type:
                    group["lr"].fill_(rate * factor)
                else:
                    group["lr"] = torch.full((), rate * factor, device=self.device)

    def step(self, batch: Batch, augment: Callable[[torch.Tensor], torch.Tensor], with_r1: bool) -> Batch:
        """One step of both optimisers; returns the losses."""
        images, labels = batch["images"], batch["labels"]
        losses: Batch = {}

        def critic(images: torch.Tensor) -> torch.Tensor:
            return self.plain_discriminator(images, labels).logits

        weight = self.settings["class_loss_weight"]
        with self.accelerator.accumulate(self.generator, self.discriminator):
            fake_images = self.generator(batch["latents"], labels).sample

            # The discriminator's step.
            critic_images = torch.cat([augment(images), augment(fake_images.detach())])
            output = self.discriminator(critic_images, labels.repeat(2), num_batches=2)
            real_logits, fake_logits = output.logits.float().chunk(2)
            if self.settings["adversarial_loss"] == "hinge":
                losses["discriminator"] = hinge_discriminator_loss(real_logits, fake_logits)
            else:
                real, fake = critic_images.chunk(2)
                losses["discriminator"] = wasserstein_discriminator_loss(real_logits, fake_logits) + 10 * (
                    gradient_penalty(critic, real, fake, batch["mix"])
                )
            discriminator_loss = losses["discriminator"]
            if weight:
                losses["class_real"] = class_loss(output.class_logits.float().chunk(2)[0], labels)
                discriminator_loss = discriminator_loss + weight * losses["class_real"]
            if with_r1:
                losses["r1"] = r1_penalty(critic, augment(images))
                discriminator_loss = discriminator_loss + self.settings["r1_weight"] * R1_INTERVAL * losses["r1"]
            self.accelerator.backward(discriminator_loss)
            self.discriminator_optimizer.step()
            self.discriminator_optimizer.zero_grad()

            # The generator's step, on the same images.
            self.plain_discriminator.requires_grad_(False)
            output = self.judge(augment(fake_images), labels)
            losses["generator"] = generator_loss(output.logits.float())
            total_loss = losses["generator"]
            if weight:
                losses["class_fake"] = class_loss(output.class_logits.float(), labels)
                total_loss = total_loss + weight * losses["class_fake"]
            self.accelerator.backward(total_loss)
            self.plain_discriminator.requires_grad_(True)
            self.generator_optimizer.step()
            self.generator_optimizer.zero_grad()
        return {name: loss.detach() for name, loss in losses.items()}

    def capture(self, batch: Batch) -> None:
        """Records the step without R1 as a CUDA graph, after three steps that warm it up and count."""
        self.fixed = {name: value.clone() for name, value in batch.items()}
        self.graph = recorded(lambda: self.step(self.fixed, unchanged, with_r1=False), self.graph_losses)

    def replay(self, batch: Batch) -> Batch:
        """The recorded step on another batch; its losses are overwritten by the next replay."""
        assert self.graph is not None
        for name, value in batch.items():
            self.fixed[name].copy_(value, non_blocking=True)
        self.graph.replay()
        return self.graph_losses


class Feed:
    """The inputs of each step, as train_dim.py draws them, and its augmentation."""

    def __init__(self, run: Run, train: ImageData, batch_size: int):
        self.run, self.train, self.batch_size = run, train, batch_size
        self.order = ShuffledOrder(len(train), run.seed, run.device)
        self.noise = torch.Generator(run.device)

    def draw(self, step: int) -> tuple[Batch, Callable[[torch.Tensor], torch.Tensor]]:
        run = self.run
        rng = random.Random(f"{run.seed}/{step}/0")
        self.noise.manual_seed(rng.getrandbits(63))
        pixels, labels = self.train.batch(self.order.take(step * self.batch_size, self.batch_size))
        latent_dim = run.plain_generator.config.latent_dim
        latents = torch.randn(len(labels), latent_dim, generator=self.noise, device=run.device)
        augment = draw_augmentation(run.augmentation, self.train.size, rng)
        mix = torch.rand(len(labels), 1, 1, 1, generator=self.noise, device=run.device)
        return {"images": normalise(pixels), "labels": labels, "latents": latents, "mix": mix}, augment

    def advance(self, step: int, with_r1: bool | None = None, ema_decay: float = 0.999) -> Batch:
        """
        A whole step: inputs, both optimisers, the average. R1 comes with every sixteenth, unless it is said whether.
        """
        run = self.run
        if with_r1 is None:
            with_r1 = run.settings["r1_weight"] > 0 and step % R1_INTERVAL == 0
        batch, augment = self.draw(step)
        losses = run.step(batch, augment, with_r1) if with_r1 or run.graph is None else run.replay(batch)
        update_average(run.ema_generator, run.plain_generator, ema_decay)
        return losses


def unchanged(images: torch.Tensor) -> torch.Tensor:
    """No augmentation."""
    return images


def recorded(
    function: Callable[[], Any], result: dict[str, Any] | None = None, repeats: int = 1
) -> torch.cuda.CUDAGraph:
    """A CUDA graph of a function that was called three times before, on a stream of its own as graphs demand."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(repeats):
            value = function()
    if result is not None:
        result.update(value)
    return graph


def now(device: torch.device) -> float:
    """
    Seconds on a clock, once the device has done its work. With one thread on a CPU it is the process's CPU time, so
    that other work on the machine does not count.
    """
    if device.type == "cuda":
        torch.cuda.synchronize()
    elif torch.get_num_threads() == 1:
        return time.process_time()
    return time.perf_counter()


def timed(function: Callable[[], Any], device: torch.device, seconds: float, intervals: int = 5) -> list[float]:
    """Seconds per call in each of some intervals that last `seconds` together, after calls to warm up."""

    def interval(calls: int) -> float:
        start = now(device)
        for _ in range(calls):
            function()
        return (now(device) - start) / calls

    interval(2)
    calls = max(1, round(seconds / intervals / interval(2)))
    return [interval(calls) for _ in range(intervals)]


def rates(seconds: Sequence[float], images: int) -> dict[str, float]:
    """Images per second, rounded: median, and from the slowest to the fastest interval."""
    each = [images / value for value in seconds]
    return {
        "images_per_second": round(statistics.median(each), 1),
        "slowest": round(min(each), 1),
        "fastest": round(max(each), 1),
    }


class Operations(TorchDispatchMode):
    """Counts floating-point operations as `FlopCounterMode` does, which cannot count a second derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            self.flops += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=output)
        return output


def step_flops(run: Run, batch: Batch, with_r1: bool = False) -> int:
    """Floating-point operations of one step: convolutions and products, forward, backward and twice backward."""
    with Operations() as counted:
        run.step(batch, unchanged, with_r1)
    return counted.flops


def convolution_rate(run: Run, batch: Batch, dtype: torch.dtype, seconds: float) -> dict[str, float]:
    """
    The rate in FLOP/s at which the device does the convolutions of one step, forward and backward, each by itself in
    a loop (on a GPU as a graph, so that launches do not count), in the faster of both layouts.

    Args:
        run ([`Run`]): Neither compiled nor a graph; it makes one step.
        dtype (`torch.dtype`): Of the operands.
        seconds (`float`): Time to spend, about.
    """
    calls: list[tuple[Any, torch.Size, bool, bool]] = []

    def note(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        image = inputs[0]
        calls.append((module, image.shape, image.requires_grad, any(p.requires_grad for p in module.parameters())))

    modules = [m for net in (run.plain_generator, run.plain_discriminator) for m in net.modules()]
    hooks = [m.register_forward_pre_hook(note) for m in modules if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    run.step(batch, unchanged, with_r1=False)
    for hook in hooks:
        hook.remove()
    flops, total, done = 0, 0.0, {}
    torch.backends.cudnn.benchmark = True
    for module, shape, needs_input, needs_weight in calls:
        kind = (module.weight.shape, module.stride, type(module), shape, needs_input, needs_weight)
        if kind not in done:
            done[kind] = _time_convolution(module, shape, needs_input, needs_weight, dtype, run.device, seconds / 40)
        flops, total = flops + done[kind][0], total + done[kind][1]
    torch.backends.cudnn.benchmark = run.way.cudnn_benchmark
    return {"flops_of_convolutions": flops, "seconds_of_convolutions": total, "flop_per_second": flops / total}


def _time_convolution(
    module: Any, shape: torch.Size, needs_input: bool, needs_weight: bool, dtype: torch.dtype, device: torch.device,
    seconds: float,
) -> tuple[int, float]:  # fmt: skip
    """FLOP and seconds of one convolution, forward and backward."""
    function = F.conv2d if isinstance(module, nn.Conv2d) else F.conv_transpose2d
    flops, fastest = 0, float("inf")
    for layout in (torch.contiguous_format, torch.channels_last):
        image = torch.randn(shape, device=device, dtype=dtype).to(memory_format=layout).requires_grad_(needs_input)
        weight = module.weight.detach().to(dtype).to(memory_format=layout).requires_grad_(needs_weight)
        wanted = [tensor for tensor in (image, weight) if tensor.requires_grad]
        upstream = torch.randn_like(function(image, weight, stride=module.stride, padding=module.padding))

        def call(image: Any = image, weight: Any = weight, wanted: Any = wanted, upstream: Any = upstream) -> None:
            output = function(image, weight, stride=module.stride, padding=module.padding)
            if wanted:
                torch.autograd.grad(output, wanted, upstream)

        with Operations() as counted:
            call()
        flops = counted.flops
        if device.type == "cuda":
            graph = recorded(call, repeats=10)
            times = [value / 10 for value in timed(graph.replay, device, seconds, intervals=3)]
        else:
            times = timed(call, device, seconds, intervals=3)
        fastest = min(fastest, statistics.median(times))
    return flops, fastest
