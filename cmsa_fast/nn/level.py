"""Base class of the modules that fuse an expression into visual features."""

from torch import nn

from ..kernels import BACKENDS


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
        self.query = nn.Linear(token_channels, attention_channels, bias=bias)
        self.key = nn.Linear(token_channels, attention_channels, bias=bias)
        self.value = nn.Linear(token_channels, attention_channels, bias=bias)
        self.output = nn.Linear(attention_channels, token_channels, bias=bias)

    def extra_repr(self) -> str:
        return (
            f"visual_channels={self.visual_channels}, word_channels={self.word_channels}, "
            f"attention_channels={self.attention_channels}, backend={self.backend!r}"
        )
