"""A looped block of your own: what `fpcheck certify examples/my_block.py:block` needs, and nothing more."""

import torch
from torch import Tensor, nn

WIDTH, TOKENS = 16, 6


class ScaledLoop(nn.Module):
    """A pre-norm encoder layer as a loop. The residual stream is scaled by `alpha`, so the state stays bounded."""

    def __init__(self, alpha: float) -> None:
        super().__init__()
        self.alpha = alpha
        self.layer = nn.TransformerEncoderLayer(
            WIDTH, nhead=2, dim_feedforward=32, dropout=0.0, norm_first=True, batch_first=True
        )

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        h = self.alpha * z + x
        # The layer returns h + attention + feed-forward; what it adds is scaled by 1 - alpha.
        return h + (1 - self.alpha) * (self.layer(h) - h)


torch.manual_seed(0)
block = ScaledLoop(alpha=0.5).eval()
unscaled = ScaledLoop(alpha=1.0).eval()  # alpha = 1 drops the layer: the state drifts by x at every step
torch.manual_seed(0)
strong = ScaledLoop(alpha=0.5).eval()  # `block` with branches 15 times as strong: some of its loops oscillate
with torch.no_grad():
    strong.layer.self_attn.out_proj.weight *= 15
    strong.layer.linear2.weight *= 15


def inputs(count: int, seed: int) -> Tensor:
    """Injections, one per input: `count` of them, the same ones for the same seed."""
    return torch.randn(count, TOKENS, WIDTH, generator=torch.Generator().manual_seed(seed))
