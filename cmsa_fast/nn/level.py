"""Base class of the modules that fuse an expression into visual features."""

from torch import Tensor, nn

from ..kernels import BACKENDS
from ..kernels.validation import check_images
from .validation import check_dtype_and_device, check_unmodified, check_visual, check_words


class Level(nn.Module):
    """Sizes of a level, and the linear maps of its attention.

    Attributes:
        out_channels: Channels of a token, and of the result.
    """

    def __init__(
        self,
        visual_channels: int,
        word_channels: int,
        token_channels: int,
        attention_channels: int,
        backend: str,
        *,
        bias: bool = True,
    ) -> None:
        super().__init__()
        for name, size in {
            "visual_channels": visual_channels,
            "word_channels": word_channels,
            "squeezed_channels": token_channels,
            "attention_channels": attention_channels,
        }.items():
            if size < 1:
                raise ValueError(f"{name} must be at least 1; got {size}.")
        if backend not in BACKENDS:
            raise ValueError(f"backend must be one of {', '.join(BACKENDS)}; got {backend!r}.")
        self.visual_channels = visual_channels
        self.word_channels = word_channels
        self.attention_channels = attention_channels
        self.out_channels = token_channels
        self.backend = backend
        self._bias = bias
        self.query = nn.Linear(token_channels, attention_channels, bias=bias)
        self.key = nn.Linear(token_channels, attention_channels, bias=bias)
        self.value = nn.Linear(token_channels, attention_channels, bias=bias)
        self.output = nn.Linear(attention_channels, token_channels, bias=bias)

    def check_inputs(
        self, visual: Tensor, words: Tensor, word_mask: Tensor | None, image_index: Tensor | None
    ) -> None:
        """Check the arguments of `CMSA.forward` and the linear maps; raises as it does."""
        self.check_linear_maps()
        check_visual(visual, self.visual_channels)
        check_dtype_and_device("visual", visual, "output.weight", self.output.weight)
        check_words(words, word_mask, self.word_channels, "visual", visual)
        check_images("visual", len(visual), "words", len(words), image_index, words.device)

    def check_linear_maps(self) -> None:
        """Check that the linear maps compute no more than their weights and biases, which are used without a call.

        Raises:
            TypeError: One is no nn.Linear, has hooks, or differs from the level's own in having a bias.
        """
        for name, part in self.named_children():
            check_unmodified(name, part, nn.Linear)
            if (part.bias is not None) != self._bias:
                raise TypeError(f"{name} must have bias={self._bias}; got bias={not self._bias}.")

    def extra_repr(self) -> str:
        return (
            f"visual_channels={self.visual_channels}, word_channels={self.word_channels}, "
            f"attention_channels={self.attention_channels}, backend={self.backend!r}"
        )
