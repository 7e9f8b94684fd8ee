"""Coordinates, word table, backbones, fusion and losses, each against its formula."""

from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from cmsa_fast.nn import (
    DilatedResNet,
    GatedFusion,
    NarrowBackbone,
    WordEmbedding,
    dice_loss,
    segmentation_loss,
    spatial_coordinates,
)


def test_coordinates_by_hand() -> None:
    grid = spatial_coordinates(2, 4, dtype=torch.float64)
    assert grid.shape == (8, 2, 4)
    expected = [0.0, 0.0, 0.5, 1.0, 0.25, 0.5, 0.25, 0.5]
    assert grid[:, 1, 2].tolist() == expected
    with pytest.raises(ValueError, match="at least 1"):
        spatial_coordinates(0, 3)


class TestWordTable:
    def test_ids_are_checked(self) -> None:
        table = WordEmbedding(5, 3)
        assert table(torch.tensor([[0, 4]])).shape == (1, 2, 3)
        with pytest.raises(ValueError, match=r"ids in 0\.\.4"):
            table(torch.tensor([[5]]))
        with pytest.raises(TypeError, match="int64"):
            table(torch.zeros(1, 2))

    def test_glove_vectors_go_to_their_words(self, tmp_path: Path) -> None:
        path = tmp_path / "glove.txt"
        path.write_text("red 1 2 3\n. . 7 8 9\nblue 4 5 6\n", encoding="utf-8")
        table = WordEmbedding.from_glove(path, ["<pad>", "blue", "red", ". ."])
        assert table.weight[1].tolist() == [4, 5, 6]
        assert table.weight[2].tolist() == [1, 2, 3]
        assert table.weight[3].tolist() == [7, 8, 9]
        assert table.weight[0].abs().max() <= 0.08

    @pytest.mark.parametrize(
        ("text", "message"),
        [("red 1 2\nblue 1\n", "line 2"), ("red 1 x\n", "no number"), ("green 1 2\n", "none of")],
    )
    def test_damaged_files(self, tmp_path: Path, text: str, message: str) -> None:
        path = tmp_path / "glove.txt"
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            WordEmbedding.from_glove(path, ["red", "blue"])

    def test_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="GloVe"):
            WordEmbedding.from_glove(tmp_path / "none.txt", ["red"])

    def test_real_vectors(self, real: Path, tmp_path: Path) -> None:
        import gzip

        path = tmp_path / "glove.txt"
        path.write_bytes(gzip.decompress((real / "words/glove.6B.100d.sample.txt.gz").read_bytes()))
        word, *numbers = path.read_text(encoding="utf-8").splitlines()[0].split(" ")
        table = WordEmbedding.from_glove(path, ["<pad>", word])
        assert table.weight[1].tolist() == pytest.approx([float(number) for number in numbers])


class TestDilatedResNet:
    def test_dilation_is_torchvision_s(self) -> None:
        theirs = torchvision.models.resnet50(replace_stride_with_dilation=[False, True, True])
        ours = dict(DilatedResNet("resnet50").body.named_modules())
        for name, module in theirs.named_modules():
            if isinstance(module, nn.Conv2d):
                for field in ("stride", "dilation", "padding"):
                    assert getattr(ours[name], field) == getattr(module, field), name

    def test_basic_blocks_are_dilated(self) -> None:
        net = DilatedResNet("resnet18")
        levels = net(torch.rand(1, 3, 65, 97))
        assert [tuple(level.shape) for level in levels] == [
            (1, size, 9, 13) for size in (128, 256, 512)
        ]
        dilations = [
            m.dilation[0]
            for layer in (net.body.layer3, net.body.layer4)
            for m in layer.modules()
            if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)
        ]
        assert dilations == [1, 2, 2, 2, 2, 4, 4, 4]

    @pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
    def test_weights_from_a_file(self, tmp_path: Path, suffix: str) -> None:
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

    def test_deeplab_names(self, tmp_path: Path) -> None:
        state = torchvision.models.resnet18().state_dict()
        path = tmp_path / "deeplab.pth"
        renamed = {f"backbone.{name}": v for name, v in state.items() if not name.startswith("fc.")}
        torch.save({**renamed, "classifier.0.weight": torch.zeros(1)}, path)
        net = DilatedResNet("resnet18", weights=path)
        assert torch.equal(net.body.conv1.weight, state["conv1.weight"])

    def test_weights_that_do_not_fit(self, tmp_path: Path) -> None:
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
        with pytest.raises(ValueError, match="architecture must be one of"):
            DilatedResNet("vgg16")

    def test_a_failed_download_says_what_to_put_where(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: object, **__: object) -> None:
            raise URLError("no network")

        monkeypatch.setattr(torchvision.models._api.WeightsEnum, "get_state_dict", fail)
        with pytest.raises(FileNotFoundError, match=r"put it at .*checkpoints.*resnet18-\w+\.pth"):
            DilatedResNet("resnet18", weights="imagenet")

    def test_batch_norm_is_frozen(self) -> None:
        net = DilatedResNet("resnet18").train()
        names = [name for name, part in net.named_parameters() if "bn" in name]
        before = net.body.bn1.running_mean.clone()
        net(torch.rand(2, 3, 32, 32))
        assert names == []
        assert torch.equal(net.body.bn1.running_mean, before)


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


def test_fusion_is_equation_5() -> None:
    torch.manual_seed(0)
    fusion = GatedFusion([3, 5, 4], 6).double()
    with torch.no_grad():
        fusion.gamma.copy_(torch.tensor([0.3, -0.7, 1.1]))
    levels = [torch.randn(2, c, 4, 3, dtype=torch.float64) for c in (3, 5, 4)]
    x = [conv(level) for conv, level in zip(fusion.project, levels, strict=True)]
    m = [conv(part).sigmoid() for conv, part in zip(fusion.memory, x, strict=True)]
    r = [conv(part).sigmoid() for conv, part in zip(fusion.reset, x, strict=True)]
    expected = torch.zeros_like(x[0])
    for i in range(3):
        g = (1 - m[i]) * x[i]
        for j in range(3):
            if j != i:
                g = g + fusion.gamma[j] * m[j] * x[j]
        expected = expected + r[i] * g.tanh() + (1 - r[i]) * x[i]
    torch.testing.assert_close(fusion(levels), expected, rtol=1e-12, atol=1e-12)
    assert m[0].shape == (2, 1, 4, 3)
    assert torch.equal(fusion.fuse(x), fusion(levels))
    with pytest.raises(ValueError, match="projected must be 3 tensors"):
        fusion.fuse(x[:2])
    with pytest.raises(ValueError, match="share batch, height"):
        fusion([*levels[:2], levels[2][..., :2]])
    with pytest.raises(ValueError, match="at least two levels"):
        GatedFusion([3])


def test_losses_by_hand() -> None:
    logits = torch.tensor([[[[2.0, -1.0]]]])
    masks = torch.tensor([[[True, False]]])
    p = logits[0, 0, 0].sigmoid()
    expected = -(p[0].log() + (1 - p[1]).log()) / 2
    assert float(segmentation_loss(logits, masks)) == pytest.approx(float(expected))
    dice = 1 - (2 * p[0] + 1) / (p.sum() + 1 + 1)
    assert float(dice_loss(logits, masks)) == pytest.approx(float(dice))
    for loss in (segmentation_loss, dice_loss):
        with pytest.raises(TypeError, match="bool"):
            loss(logits, masks.float())
        with pytest.raises(ValueError, match="shape"):
            loss(logits, masks[:, :, :1])
