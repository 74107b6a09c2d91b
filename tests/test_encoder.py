"""The encoder: every kind of trunk and pooling, what is frozen, and weights that do or do not fit."""

import pickle

import pytest
import timm
import torch
from safetensors.torch import save_file

from dml.encoder import Encoder, Head, Trunk, pooled_features
from dml.errors import ConfigurationError


def encoder(trunk, pooling="avg", dim=8, **options):
    return Encoder(trunk, Head(pooled_features(trunk, pooling), dim, pooling, **options))


@pytest.mark.parametrize("pooling", ["avg", "max", "avg_max", "gem", "native"])
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("test_resnet", 64),
        ("test_vit", 160),
        ("test_efficientnet", 64),
        ("mobilenetv3_small_050", 64),
    ],
)
def test_every_pooling_on_every_kind_of_trunk(name, size, pooling):
    """Feature maps, tokens with a class token, and trunks with a layer after pooling."""
    model = encoder(Trunk(name), pooling).eval()
    embeddings = model(torch.randn(2, 3, size, size))
    assert embeddings.shape == (2, 8)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(2))


def test_pooling_by_hand():
    features = torch.tensor(
        [[[1.0, 2.0, 3.0], [0.0, 0.0, 6.0]]]
    )  # one image, two channels, three places
    expected = {"avg": [2.0, 2.0], "max": [3.0, 6.0], "avg_max": [5.0, 8.0]}
    for pooling, values in expected.items():
        assert Head(2, 4, pooling).pool(features).tolist() == [values]
    gem = Head(2, 4, "gem").pool(features)
    torch.testing.assert_close(gem, torch.tensor([[12.0 ** (1 / 3), 72.0 ** (1 / 3)]]))


def test_average_pooling_is_timms_own_where_timm_averages():
    trunk = Trunk("test_resnet").eval()
    images = torch.randn(2, 3, 64, 64)
    native = encoder(trunk, "native").pooled(images)
    torch.testing.assert_close(encoder(trunk, "avg").pooled(images), native)


def test_tokens_are_averaged_without_the_class_token():
    trunk = Trunk("test_vit").eval()
    tokens = trunk(torch.randn(1, 3, 160, 160))
    assert trunk.feature_map(tokens).shape[-1] == tokens.shape[1] - 1


def test_embeddings_can_stay_unnormalised():
    trunk = Trunk("test_resnet").eval()
    model = Encoder(trunk, Head(pooled_features(trunk, "avg"), 8), normalize=False)
    assert (model(torch.randn(4, 3, 64, 64)).norm(dim=1) - 1).abs().min() > 1e-3


def test_embeddings_are_float32_under_autocast():
    """Half-precision embeddings tie where float32 ones do not (pitfall P3)."""
    model = encoder(Trunk("test_resnet"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(torch.randn(4, 3, 64, 64)).dtype == torch.float32


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", "regnety_002", "mobilenetv2_035"])
def test_frozen_batchnorm_statistics_survive_training(name):
    """timm's BatchNormAct2d is not nn.BatchNorm2d, and every train() call thaws layers (pitfall D3)."""
    trunk = Trunk(name, freeze_bn=True)
    layers = {
        key: value.clone()
        for key, value in trunk.state_dict().items()
        if "running" in key or "num_b" in key
    }
    assert layers
    optimizer = torch.optim.SGD(trunk.parameters(), lr=0.1)
    for _ in range(3):
        trunk.train()
        trunk(torch.randn(4, 3, 64, 64)).mean().backward()
        optimizer.step()
    after = trunk.state_dict()
    for key, value in layers.items():
        assert torch.equal(after[key], value), key
    scales = [m.weight for m in trunk.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert any(p.grad is not None for p in scales), "scale and shift go on learning"


def test_unfrozen_statistics_move():
    """The test above could not fail otherwise."""
    trunk = Trunk("resnet18", freeze_bn=False).train()
    before = trunk.model.bn1.running_mean.clone()
    trunk(torch.randn(4, 3, 64, 64))
    assert not torch.equal(trunk.model.bn1.running_mean, before)


def test_a_frozen_trunk_gets_no_gradient_and_stays_in_evaluation_mode():
    model = encoder(Trunk("resnet18"))
    model.trunk.frozen = True
    model.train()
    model(torch.randn(4, 3, 64, 64)).sum().backward()
    assert all(parameter.grad is None for parameter in model.trunk.parameters())
    assert model.head.linear.weight.grad is not None
    assert not model.trunk.model.bn1.training


def test_the_encoder_can_be_pickled():
    """Overwriting `train` on instances would break deepcopy and spawned workers."""
    model = encoder(Trunk("test_resnet", freeze_bn=True))
    assert isinstance(pickle.loads(pickle.dumps(model)), Encoder)


def test_preprocessing_is_timms_unless_said_otherwise():
    own = Trunk("test_vit").preprocess
    recorded = timm.data.resolve_model_data_config(timm.create_model("test_vit"))
    assert own.mean == tuple(recorded["mean"])
    assert own.image_size == recorded["input_size"][-1]
    changed = Trunk(
        "test_resnet", image_size=48, resize=56, mean=[0.5], interpolation="bilinear"
    ).preprocess
    assert (changed.image_size, changed.resize, changed.mean) == (48, 56, (0.5, 0.5, 0.5))
    assert changed.interpolation == "bilinear"


def test_a_transformer_takes_another_image_size():
    model = encoder(Trunk("test_vit", image_size=96)).eval()
    assert model(torch.randn(1, 3, 96, 96)).shape == (1, 8)


@pytest.mark.parametrize("kind", ["safetensors", "pth", "wrapped"])
def test_weights_from_a_file(tmp_path, kind):
    """A classifier's weights, which a trunk has not, are the only ones that may be left over."""
    donor = timm.create_model("test_resnet")
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pth")
    state = donor.state_dict()
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state} if kind == "wrapped" else state, path)
    trunk = Trunk("test_resnet", weights=str(path))
    for key, value in trunk.model.state_dict().items():
        assert torch.equal(value, state[key]), key


def message(**options) -> str:
    with pytest.raises(ConfigurationError) as caught:
        Trunk(**options)
    return str(caught.value)


def test_weights_that_do_not_fit_are_refused_with_their_keys(tmp_path):
    """strict=False once hid a drop of thirty points (pitfall D10)."""
    path = tmp_path / "other.safetensors"
    state = timm.create_model("test_resnet", num_classes=0).state_dict()
    state["conv1.extra"] = state.pop(next(iter(state)))
    save_file(state, path)
    text = message(name="test_resnet", weights=str(path))
    assert "1 missing in the file" in text
    assert "1 unknown to the model: conv1.extra" in text


@pytest.mark.parametrize("content", [b"", b"not weights", b"\x80\x04K\x01."])
def test_a_file_that_holds_no_weights(tmp_path, content):
    path = tmp_path / "w.pth"
    path.write_bytes(content)
    assert f"backbone.weights={path}" in message(name="test_resnet", weights=str(path))


def test_an_unknown_model_is_answered_with_the_nearest():
    assert "Did you mean resnet50" in message(name="resnet5O")


def test_an_unknown_argument_of_the_model_is_named():
    assert "backbone.kwargs={'foo': 1}" in message(name="test_resnet", kwargs={"foo": 1})


def test_unreachable_pretrained_weights_say_what_to_fetch(monkeypatch, tmp_path):
    """Where the hub does not answer, the message names the file and the option that takes it."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    text = message(name="resnet50.tv_in1k", pretrained=True)
    assert "timm/resnet50.tv_in1k/resolve/main/model.safetensors" in text
    assert "backbone.weights=FILE" in text


def test_a_model_without_weights_says_so():
    text = message(name="mobilenetv2_035", pretrained=True)
    assert "records no weights" in text
