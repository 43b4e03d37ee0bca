"""The validations of a training run: what they may take, and that a signal is heeded within a step."""

import pytest
import torch
from presets import network_configs
from validation import (
    Heeding,
    Operations,
    ValidationInterrupted,
    ValidationPlan,
    count_operations,
    plan_validations,
    recorded_settings,
    scored_part,
)

from dim_hf.data import ImageData
from dim_hf.models import DiMDiscriminator, DiMGenerator
from dim_hf.streams.generated import GeneratedStream


# Of the base preset and a ConvNet-3 at 32 pixels, in millions.
AT_32 = Operations(step=993.0, generated=680.0, scored=212.0)


def planned(num_classes, steps, batch_size=64, held_out=5000, phases=None, interval=None, **more):
    return plan_validations(
        AT_32,
        images_trained=steps * batch_size,
        phases=phases or (steps, 0),
        num_classes=num_classes,
        held_out=held_out,
        steps=interval,
        **more,
    )


def test_a_long_run_is_validated_as_much_as_possible():
    plan = planned(10, 60_000)
    assert (plan.steps, plan.epochs, plan.ipc, plan.images, plan.times) == (7500, 100, 10, 5000, 8)
    cost = 8 * (100 * 10 * 10 * AT_32.generated + 5000 * AT_32.scored)
    assert plan.share == pytest.approx(cost / (60_000 * 64 * AT_32.step)) and plan.share < 0.1
    # What belongs to the end of a phase, and a second score at the end, count.
    assert planned(10, 60_000, phases=(40_001, 19_999), again=1).times == 8 + 1 + 1


@pytest.mark.parametrize("num_classes", [2, 10, 43, 100, 1000])
@pytest.mark.parametrize("steps", [300, 2000, 20_000])
@pytest.mark.parametrize("held_out", [500, 100_000])
def test_all_validations_take_a_tenth_at_most_unless_the_least_is_more(num_classes, steps, held_out):
    plan = planned(num_classes, steps, held_out=held_out)
    least = plan.times == 1 and plan.epochs == plan.ipc == 1 and plan.images <= 1000
    assert plan.share <= 0.101 or least
    assert 1 <= plan.epochs <= 100 and 1 <= plan.ipc <= 10 and 1 <= plan.images <= held_out
    trained = plan.epochs * plan.ipc * num_classes
    assert plan.times in (1, 2, 4, 8) and (plan.times == 1 or trained >= min(5000, 500 * num_classes))


def test_what_is_given_wins():
    assert planned(10, 2000, interval=10).times == 200
    plan = planned(10, 2000, settings=(300, 10, 5000))
    assert (plan.times, plan.epochs, plan.images) == (1, 300, 5000) and plan.share > 0.1
    plan = planned(10, 2000, interval=500, settings=(300, 10, 5000))
    assert (plan.times, plan.steps, plan.epochs) == (4, 500, 300)
    assert "4 times, 300 epochs of 10 images per class, scored on 5,000 held-out images" in str(plan)


def test_operations_are_those_of_the_networks():
    generator_config, discriminator_config = network_configs("base", 8, 1, 10)
    generator, discriminator = DiMGenerator(**generator_config), DiMDiscriminator(**discriminator_config)
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    data = ImageData(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.arange(4), tuple("abcdefghij"), "x")
    state = torch.get_rng_state()
    found = count_operations(generator, discriminator, "convnet3", data)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in generator.state_dict().items())
    # Convolutions of 128 channels on 8, 4 and 2 pixels, and one product: twice the multiplications.
    judged = 2 * (9 * 128 * 64 + 9 * 128 * 128 * 16 + 9 * 128 * 128 * 4 + 128 * 10)
    assert found.scored == pytest.approx(judged, rel=0.02)
    make = found.generated - 3 * found.scored
    assert make > 0 and (found.step - 3 * make) % 8 == 0


def test_a_part_that_is_scored_has_every_class():
    labels = torch.arange(100) // 50
    data = ImageData(torch.zeros(100, 1, 8, 8, dtype=torch.uint8), labels, ("a", "b"), "x")
    plan = ValidationPlan(1, 1, 1, 20, 1, 0.1)
    part = scored_part(data, plan, 0)
    assert part.labels.bincount().tolist() == [10, 10]
    assert scored_part(data, ValidationPlan(1, 1, 1, 100, 1, 0.1), 0) is data


def test_a_checkpoint_keeps_the_settings_of_its_validations():
    progress = {"options": {"validation_epochs": 7}, "validation": {"ipc": 3, "images": 40}}
    assert recorded_settings(progress, 100) == (7, 3, 40)
    assert recorded_settings(progress, 30) == (7, 3, 30)


def test_a_stream_ends_within_a_step_of_a_signal():
    stream = GeneratedStream(DiMGenerator(2, 8, 1, 4, 4, (8,), (0,)), 6, seed=0, batch_size=4)
    calls = []

    def stop():
        calls.append(None)
        return len(calls) == 3

    heeding = Heeding(stream, stop)
    with pytest.raises(ValidationInterrupted):
        [calls.append("batch") for _ in heeding.batches(0)]
    assert calls.count("batch") == 1 and heeding.steps_per_epoch == 3
