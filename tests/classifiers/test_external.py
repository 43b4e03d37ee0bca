"""Models of timm and transformers, made and trained for real: inputs, outputs and refusals."""

import json

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForImageClassification, ResNetConfig, ViTConfig, ViTForImageClassification

from dim_hf.classifiers import build_classifier, check_classifier, local_fingerprint, logits_and_features
from dim_hf.classifiers.external import plan
from dim_hf.classifiers.names import split_name


SMALL_RESNET = (
    "transformers/ResNetConfig:embedding_size=16,hidden_sizes=[16,32,32,64],depths=[1,1,1,1],layer_type=basic"
)
SMALL_VIT = "transformers/ViTConfig:hidden_size=32,num_hidden_layers=2,num_attention_heads=2,intermediate_size=64"
MODELS = [
    "timm/resnet18",
    "timm/efficientnet_b0",
    "timm/convnext_atto",
    "timm/mobilenetv3_small_050",
    "timm/vit_tiny_patch16_224",
    SMALL_RESNET,
    SMALL_VIT,
    "transformers/MobileNetV2Config:depth_multiplier=0.35",
    "transformers/ConvNextV2Config:hidden_sizes=[8,16,16,32],depths=[1,1,2,1]",
]


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def seeded(name, *shape):
    torch.manual_seed(0)
    return build_classifier(name, *shape)


@pytest.mark.parametrize(("size", "channels"), [(28, 1), (28, 3), (32, 1), (32, 3)])
@pytest.mark.parametrize("name", MODELS)
def test_it_learns_small_images(name, size, channels):
    network = seeded(name, 3, channels, size).train()
    images, labels = torch.randn(6, channels, size, size), torch.arange(3).repeat(2)
    images += 2 * torch.randn(3, channels, size, size)[labels]
    optimizer = torch.optim.Adam(network.parameters(), 2e-4)
    losses = []
    for _ in range(3):
        torch.manual_seed(1)  # The same dropout in each step.
        logits = network(images)
        loss = F.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        for parameter, value in network.named_parameters():
            assert value.grad is not None and torch.isfinite(value.grad).all(), parameter
        optimizer.step()
        losses.append(loss.item())
    assert logits.shape == (6, 3) and losses[-1] < losses[0]

    network.eval()
    with torch.no_grad():
        logits, features = logits_and_features(network, images)
        single = network(images[2:3])
    torch.testing.assert_close(logits[2:3], single, rtol=1e-3, atol=1e-4)
    assert tuple(features) == network.feature_layers and len(features) >= 3
    assert all(len(output) == 6 and output.is_floating_point() for output in features.values())
    assert not any(network.get_submodule(layer)._forward_hooks for layer in network.feature_layers)


@pytest.mark.parametrize("name", ["timm/resnet18", "timm/mobilenetv3_small_050", SMALL_RESNET])
def test_the_stem_keeps_the_size_of_small_images_at_the_same_weights(name):
    small, large = build_classifier(name, 4, 1, 32), build_classifier(name, 4, 1, 128)
    assert {k: v.shape for k, v in small.state_dict().items()} == {k: v.shape for k, v in large.state_dict().items()}

    def first(network, size):
        outputs = logits_and_features(network.eval(), torch.randn(2, 1, size, size))[1]
        return next(iter(outputs.values())).shape[-1]

    assert first(small, 32) == 32
    assert first(large, 128) <= 64


@pytest.mark.parametrize(
    ("name", "size", "patches"),
    [
        ("timm/vit_tiny_patch16_224", 28, 49),
        ("timm/vit_tiny_patch16_224", 32, 64),
        ("timm/vit_tiny_patch16_224:patch_size=8", 32, 16),
        ("timm/vit_tiny_patch16_224", 224, 196),
        (SMALL_VIT, 28, 49),
        (SMALL_VIT + ",patch_size=7", 28, 16),
        (SMALL_VIT, 128, 64),
    ],
)
def test_small_images_are_cut_into_smaller_patches(name, size, patches):
    network = build_classifier(name, 2, 1, size).eval()
    with torch.no_grad():
        _, features = logits_and_features(network, torch.randn(1, 1, size, size))
    assert next(reversed(features.values())).shape[1] == patches + 1  # The class token is one more.


def test_images_are_enlarged_for_models_that_need_it():
    network = build_classifier("timm/mixer_s32_224", 2, 1, 28).eval()
    assert network.input_size == 56
    images = torch.randn(2, 1, 28, 28)
    enlarged = F.interpolate(images, [56, 56], mode="bilinear", antialias=True)
    with torch.no_grad():
        assert torch.equal(network(images), network.network(enlarged))


def test_input_size_resizes():
    network = build_classifier("timm/mobilenetv3_small_050:input_size=64", 2, 3, 32).eval()
    with torch.no_grad():
        _, features = logits_and_features(network, torch.randn(1, 3, 32, 32))
    assert next(iter(features.values())).shape[-1] == 64


def test_grey_images_are_repeated_for_models_that_take_only_colour(tmp_path):
    folder = save_vit(tmp_path)
    network = build_classifier(f"transformers/{folder}:pretrained=true", 2, 1, 8).eval()
    images = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(network(images), network(images.repeat(1, 3, 1, 1)))
    with pytest.raises(ValueError, match="takes images of 1 or 3 channels; these have 2"):
        build_classifier(f"transformers/{folder}:pretrained=true", 2, 2, 8)


def test_weights_depend_only_on_the_seed():
    plan.cache_clear()
    first = seeded(SMALL_VIT, 3, 1, 28).state_dict()
    second = seeded(SMALL_VIT, 3, 1, 28).state_dict()
    assert all(torch.equal(value, second[key]) for key, value in first.items())


def save_vit(folder, num_labels=5):
    """A pretrained model in a folder, as `save_pretrained` and its image processor leave it."""
    torch.manual_seed(7)
    config = ViTConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
                       image_size=16, patch_size=4, num_labels=num_labels)  # fmt: skip
    ViTForImageClassification(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.25, 0.3]})
    )
    return folder


def test_a_local_folder_gives_random_weights_or_on_request_its_own(tmp_path):
    folder = save_vit(tmp_path)
    own = AutoModelForImageClassification.from_pretrained(folder).eval()
    fresh = seeded(f"transformers/{folder}", 5, 3, 16)
    key = next(key for key in own.state_dict() if key.endswith("projection.weight"))
    assert not torch.equal(fresh.network.state_dict()[key], own.state_dict()[key])

    loaded = build_classifier(f"transformers/{folder}:pretrained=true", 5, 3, 16).eval()
    pixels = torch.rand(2, 3, 16, 16)
    normalised = (pixels - torch.tensor([0.4, 0.5, 0.6])[:, None, None]) / torch.tensor([0.2, 0.25, 0.3])[
        :, None, None
    ]
    with torch.no_grad():
        torch.testing.assert_close(loaded(2 * pixels - 1), own(normalised).logits)


def normalisation(folder):
    network = build_classifier(f"transformers/{folder}:pretrained=true", 5, 3, 16)
    return network.mean.flatten().tolist(), network.std.flatten().tolist()


def test_pretrained_weights_see_images_as_their_processor_makes_them(tmp_path):
    settings = save_vit(tmp_path / "a") / "preprocessor_config.json"
    own = json.loads(settings.read_text())
    # In [-1, 1] here: 0 to 1 is a mean of -1 and a spread of 2.
    for content in ({}, own | {"do_normalize": False}):
        settings.write_text(json.dumps(content))
        assert normalisation(tmp_path / "a") == ([-1.0], [2.0])
    settings.write_text(json.dumps(own | {"do_normalize": True}))
    assert normalisation(tmp_path / "a")[1] == pytest.approx([0.4, 0.5, 0.6])
    for content, problem in (
        ('{"image_mean"', "preprocessor_config.json"),
        ('{"do_flip_channel_order": true}', "BGR"),
    ):
        settings.write_text(content)
        with pytest.raises(ValueError, match=problem):
            normalisation(tmp_path / "a")
    settings.unlink()
    assert normalisation(tmp_path / "a") == ([0.0], [1.0])


def test_no_layer_of_pretrained_weights_stays_random(tmp_path):
    folder = save_vit(tmp_path)
    with pytest.raises(ValueError, match=r"weights lack vit\..*layer.*2.* and \d+ more, which would stay random"):
        build_classifier(f"transformers/{folder}:pretrained=true,num_hidden_layers=3", 5, 3, 16)


def test_pretrained_weights_keep_their_size_and_get_a_new_head(tmp_path):
    folder = save_vit(tmp_path)
    network = build_classifier(f"transformers/{folder}:pretrained=true", 3, 3, 32)
    assert network.input_size == 16 and network(torch.randn(2, 3, 32, 32)).shape == (2, 3)
    own = AutoModelForImageClassification.from_pretrained(folder).state_dict()
    same = [torch.equal(value, own[key]) for key, value in network.network.state_dict().items() if key in own]
    assert sum(same) == len(own) - 2  # All but the head's weight and bias.


def test_pretrained_timm_weights_come_from_safetensors(tmp_path, monkeypatch):
    # A cache as a download leaves it.
    folder = tmp_path / "models--timm--mobilenetv3_small_050.lamb_in1k"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    (folder / "snapshots" / ("0" * 40)).mkdir(parents=True)
    published = timm.create_model("mobilenetv3_small_050").state_dict()
    save_file(published, folder / "snapshots" / ("0" * 40) / "model.safetensors")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    network = build_classifier("timm/mobilenetv3_small_050:pretrained=true", 3, 1, 28)
    assert network.input_size == 224
    for key, value in network.network.state_dict().items():
        assert key.startswith("classifier") or torch.equal(value, published[key]), key
    (folder / "snapshots" / ("0" * 40) / "model.safetensors").rename(
        folder / "snapshots" / ("0" * 40) / "pytorch_model.bin"
    )
    with pytest.raises(ValueError, match="mobilenetv3_small_050.* has no pretrained weights that can be loaded"):
        build_classifier("timm/mobilenetv3_small_050:pretrained=true", 3, 1, 28)


def test_code_in_a_folder_is_not_run(tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps(
            {
                "model_type": "mine",
                "auto_map": {"AutoConfig": "code.Mine", "AutoModelForImageClassification": "code.Net"},
            }
        )
    )
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(ValueError, match="has no config that can be loaded"):
        build_classifier(f"transformers/{tmp_path}", 2)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm/resnet_18", r"'timm/resnet_18' is unknown; the nearest are timm/resnet18"),
        ("timm/resnet18.a1_in2k", r"is unknown; the nearest are timm/resnet18\.a1_in1k"),
        ("timm/", "'timm/' is unknown"),
        ("transformers/ResnetConfig", r"is unknown; the nearest are transformers/ResNetConfig"),
        ("transformers/ResNetKonfig", r"is unknown; the nearest are transformers/ResNetConfig"),
        ("transformers/BertConfig", "is unknown; the nearest are transformers/BeitConfig"),
        ("transformers/no/such/folder", "'no/such/folder' is not a config class .* a folder .* or a hub id"),
        ("transformers/ViTConfig:pretrained=true", "config without weights; pretrained needs a hub id or folder"),
        ("timm/resnet18:pretrained=maybe", "`pretrained` is 'maybe'; valid are true and false"),
        ("timm/resnet18:input_size=big", "`input_size` is 'big'; it must be a number of pixels"),
        ("timm/resnet18:in_chans=3", "in_chans cannot be set; the data and `pretrained` decide"),
        ("timm/resnet18:pretrained", "has the option 'pretrained'; options are `:option=value,option=value`"),
        ("convnet3:width=64", r"'convnet3:width=64' is unknown; valid are convnet3.* without options"),
    ],
)
def test_wrong_names_are_refused_without_loading_anything(name, message):
    with pytest.raises(ValueError, match=message):
        check_classifier(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm/resnet18:patch_size=4", "'timm/resnet18:patch_size=4' cannot be made: .*patch_size"),
        ("transformers/ResNetConfig:depth=[1]", "its config has no 'depth'; the nearest are depths"),
        (
            "timm/mixer_s32_224:input_size=30",
            "does not take images of 30 pixels; valid for `input_size`, to which images are resized: 32, 64, 128, 224",
        ),
        ("transformers/nobody/nothing", "'transformers/nobody/nothing' has no config that can be loaded"),
    ],
)
def test_unsuitable_models_are_refused_before_they_are_made(name, message):
    with pytest.raises(ValueError, match=message):
        check_classifier(name, 1, 32)


def test_names_are_split_at_their_options():
    assert split_name("transformers/./my/model:pretrained=true,depths=[1,2],layer_type=basic,rate=1e-3") == (
        "transformers",
        "./my/model",
        {"pretrained": True, "depths": [1, 2], "layer_type": "basic", "rate": 0.001},
    )
    assert split_name("convnet3") == ("", "convnet3", {})


def test_the_fingerprint_of_a_folder_covers_the_files_that_are_read(tmp_path):
    folder = save_vit(tmp_path)
    random, own = f"transformers/{folder}", f"transformers/{folder}:pretrained=true"
    before = local_fingerprint(random), local_fingerprint(own)
    save_file({"weight": torch.zeros(1)}, folder / "model.safetensors")
    assert local_fingerprint(random) == before[0] and local_fingerprint(own) != before[1]
    ResNetConfig().save_pretrained(folder)
    assert local_fingerprint(random) != before[0]
    assert local_fingerprint("timm/resnet18") is None and local_fingerprint("transformers/ViTConfig") is None


def test_features_of_the_fields_networks_are_the_ends_of_their_stages():
    images = torch.randn(2, 1, 32, 32)
    for name, shapes in {
        "convnet3": [(128, 16), (128, 8), (128, 4)],
        "resnet10_ap": [(32, 32), (64, 16), (128, 8), (256, 4)],
        "resnet18": [(32, 32), (64, 16), (128, 8), (256, 4)],
    }.items():
        network = build_classifier(name, 3, 1, 32).eval()
        logits, features = logits_and_features(network, images)
        assert [output.shape for output in features.values()] == [(2, width, n, n) for width, n in shapes]
        assert torch.equal(logits, network(images))
        head = nn.Sequential(*list(network)[int(network.feature_layers[-1]) + 1 :])
        assert torch.equal(head(list(features.values())[-1]), logits)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"num_hidden_layers": 10**9}, "its num_hidden_layers is 1000000000; valid are at most 1024 layers"),
        ({"hidden_size": 2**24, "intermediate_size": 2**24, "num_attention_heads": 1}, "weights; valid are at most"),
        ({"hidden_size": 10**12}, "cannot be made"),
        ({"hidden_size": "x"}, ""),
        ({"model_type": ["vit"]}, ""),
        ({"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}, "no config that can be loaded"),
        ("[" * 100_000, "no config that can be loaded"),
        ("[]", "no config that can be loaded"),
    ],
    ids=range(8),
)
def test_a_config_of_a_stranger(tmp_path, config, said):
    known = {"model_type": "vit", "num_hidden_layers": 1, "architectures": ["ViTForImageClassification"]}
    (tmp_path / "config.json").write_text(config if isinstance(config, str) else json.dumps(known | config))
    (tmp_path / "mine.py").write_text("raise SystemExit('it was run')\n")
    with pytest.raises(ValueError) as refused:
        check_classifier(f"transformers/{tmp_path}", 1, 8)
    message = str(refused.value)
    assert said in message and len(message) < 600 and "\n" not in message
