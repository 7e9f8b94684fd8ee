"""Backbones: strides, dilation, pretrained weights and freezing."""

from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from cmsa_fast.nn import DilatedResNet, NarrowBackbone
from cmsa_fast.nn.backbones import build_backbone


def dilations(net: DilatedResNet) -> list[int]:
    """Of the 3x3 convolutions of Res4 and Res5."""
    return [
        module.dilation[0]
        for layer in (net.body.layer3, net.body.layer4)
        for module in layer.modules()
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3)
    ]


def test_default_dilation_is_that_of_torchvision() -> None:
    theirs = torchvision.models.resnet50(replace_stride_with_dilation=[False, True, True])
    ours = dict(DilatedResNet("resnet50").body.named_modules())
    for name, module in theirs.named_modules():
        if isinstance(module, nn.Conv2d):
            for field in ("stride", "dilation", "padding"):
                assert getattr(ours[name], field) == getattr(module, field), name


@pytest.mark.parametrize(
    ("architecture", "dilation", "expected"),
    [
        ("resnet18", "torchvision", [1, 2, 2, 2, 2, 4, 4, 4]),
        ("resnet18", "deeplab", [2, 2, 2, 2, 4, 4, 4, 4]),
        ("resnet50", "deeplab", [2] * 6 + [4] * 3),
    ],
)
def test_dilation_replaces_strides(architecture: str, dilation: str, expected: list[int]) -> None:
    net = DilatedResNet(architecture, dilation=dilation)
    assert dilations(net) == expected
    net.load_state_dict(DilatedResNet(architecture).state_dict())
    levels = net(torch.rand(1, 3, 65, 97))
    assert [tuple(level.shape) for level in levels] == [(1, channels, 9, 13) for channels in net.channels]


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_from_a_file(tmp_path: Path, suffix: str) -> None:
    torch.manual_seed(3)
    plain = torchvision.models.resnet18().eval()
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(plain.state_dict(), path)
    else:
        save_file(plain.state_dict(), path)
    net = DilatedResNet("resnet18", weights=path).eval()
    image = torch.rand(1, 3, 33, 33)
    normal = (image - net.mean) / net.std
    stem = plain.maxpool(plain.relu(plain.bn1(plain.conv1(normal))))
    expected = plain.layer2(plain.layer1(stem))
    torch.testing.assert_close(net(image)[0], expected, rtol=1e-4, atol=1e-4)


def test_weights_of_a_segmentation_model_lose_their_prefix(tmp_path: Path) -> None:
    state = torchvision.models.resnet18().state_dict()
    path = tmp_path / "deeplab.pth"
    renamed = {f"backbone.{name}": v for name, v in state.items() if not name.startswith("fc.")}
    torch.save({**renamed, "classifier.0.weight": torch.zeros(1)}, path)
    net = DilatedResNet("resnet18", weights=path)
    assert torch.equal(net.body.conv1.weight, state["conv1.weight"])


def test_unusable_weights_are_named(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"conv1.weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="do not fit resnet18"):
        DilatedResNet("resnet18", weights=path)
    path.write_bytes(b"not weights")
    with pytest.raises(ValueError, match="not a readable file"):
        DilatedResNet("resnet18", weights=path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        DilatedResNet("resnet18", weights=tmp_path / "none.pth")
    with pytest.raises(ValueError, match="voc-labels"):
        DilatedResNet("resnet18", weights="voc-labels")
    with pytest.raises(ValueError, match="dilation must be one of torchvision, deeplab; got 3"):
        DilatedResNet("resnet18", dilation=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="architecture must be one of"):
        DilatedResNet("vgg16")


def test_failed_download_names_file_and_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr(torchvision.models._api.WeightsEnum, "get_state_dict", fail)
    with pytest.raises(FileNotFoundError, match=r"put it at .*checkpoints.*resnet18-\w+\.pth"):
        DilatedResNet("resnet18", weights="imagenet")


def test_batch_norm_is_fixed_by_default() -> None:
    net = DilatedResNet("resnet18").train()
    names = [name for name, part in net.named_parameters() if "bn" in name]
    before = net.body.bn1.running_mean.clone()
    net(torch.rand(2, 3, 32, 32))
    assert names == []
    assert torch.equal(net.body.bn1.running_mean, before)


@pytest.mark.parametrize("name", ["narrow", "resnet18"])
def test_frozen_backbone_stays_as_it_is_in_training(name: str) -> None:
    net = build_backbone(name, frozen=True, freeze_batch_norm=False)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    net.train()
    assert not any(module.training for module in net.modules())
    levels = net(torch.rand(2, 3, 32, 32))
    assert not any(level.requires_grad for level in levels)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    image = torch.rand(1, 3, 32, 32, requires_grad=True)
    (gradient,) = torch.autograd.grad(net(image)[2].sum(), image)
    assert gradient.abs().max() > 0


def test_backbone_that_is_not_frozen_trains() -> None:
    net = build_backbone("resnet18", freeze_batch_norm=False).eval().train()
    before = net.body.bn1.running_mean.clone()  # type: ignore[union-attr, operator]
    assert all(level.requires_grad for level in net(torch.rand(2, 3, 32, 32)))
    assert not torch.equal(net.body.bn1.running_mean, before)  # type: ignore[union-attr, arg-type]


def test_narrow_backbone() -> None:
    net = NarrowBackbone((8, 16, 24, 32, 40), blocks=1)
    levels = net(torch.rand(2, 3, 41, 64))
    assert [tuple(level.shape) for level in levels] == [(2, c, 6, 8) for c in (24, 32, 40)]
    assert all((level < 0).any() for level in levels)
    with pytest.raises(ValueError, match="multiples of 8"):
        NarrowBackbone((8, 8, 8, 8, 9))
    with pytest.raises(TypeError, match="floating point"):
        net(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"\[batch, 3"):
        net(torch.zeros(1, 1, 8, 8))


def test_compact_backbone_is_the_narrow_one_with_batch_norm() -> None:
    net, images = build_backbone("compact").eval(), torch.rand(2, 3, 41, 64)
    together = net(images)
    assert [tuple(level.shape) for level in together] == [(2, c, 6, 8) for c in (64, 96, 128)]
    assert not any(isinstance(part, nn.GroupNorm) for part in net.modules())
    for one, both in zip(net(images[:1]), together, strict=True):
        torch.testing.assert_close(one[0], both[0], rtol=1e-4, atol=1e-5)
