"""Pretrained weights of backbones, from torchvision's downloads or a file."""

import hashlib
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urlsplit

import torch
from torch import Tensor


def load_backbone_weights(architecture: str, weights: str | Path) -> dict[str, Tensor]:
    """Load the state dict of a torchvision ResNet, without its classifier.

    Args:
        architecture: "resnet18", "resnet34", "resnet50" or "resnet101".
        weights: "imagenet" (classification on ImageNet-1k), "voc-labels" (the backbone of torchvision's DeepLabV3,
            trained on the images of COCO train2017 that have PASCAL VOC classes; 50 and 101 only), or the path of
            a .pth or .safetensors file of either kind. All images of RefCOCO, including its test splits, are from
            the training set of COCO, so "voc-labels" has seen them, though not their expressions: results with it
            are not comparable with those of other backbones.

    Returns:
        Parameter name -> tensor, with the names of torchvision's ResNet.

    Raises:
        ValueError: The architecture has no such weights, or the file is not a state dict.
        FileNotFoundError: The file does not exist, or the download failed; the message says where to put it.
    """
    if str(weights) == "imagenet":
        state = _download(architecture, "IMAGENET1K_V1")
    elif str(weights) == "voc-labels":
        if architecture not in ("resnet50", "resnet101"):
            raise ValueError(
                'weights="voc-labels" exists only for resnet50 and resnet101, the backbones of torchvision\'s '
                f"DeepLabV3; got architecture={architecture!r}."
            )
        state = _download(f"deeplabv3_{architecture}", "COCO_WITH_VOC_LABELS_V1")
    else:
        state = _read(Path(weights))
    prefix = "backbone." if any(name.startswith("backbone.") for name in state) else ""
    names = {name: name.removeprefix(prefix) for name in state if name.startswith(prefix)}
    return {short: state[name] for name, short in names.items() if not short.startswith("fc.")}


def _download(model: str, version: str) -> dict[str, Tensor]:
    from torchvision.models import get_model_weights

    weights = get_model_weights(model)[version]
    try:
        return dict(weights.get_state_dict(progress=True, check_hash=True))
    except (URLError, OSError) as error:
        name = Path(urlsplit(weights.url).path).name
        target = Path(torch.hub.get_dir()) / "checkpoints" / name
        raise FileNotFoundError(
            f"The weights {weights.url} could not be downloaded ({error}). Download the file elsewhere and "
            f"put it at {target}, or pass its path as the weights of the backbone."
        ) from error


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(
            f"weights must be imagenet, voc-labels or the path of a file; {path} does not exist."
        )
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is not a readable safetensors file: {error}.") from error
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
        raise ValueError(f"{path} (sha256 {digest}...) is not a readable file of weights: {error}") from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"{path} must hold a state dict, a dict of tensors by parameter name.")
    return state
