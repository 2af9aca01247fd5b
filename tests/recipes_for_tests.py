"""A recipe that trains in seconds."""

from fpcheck.blocks.config import FPRMConfig
from fpcheck.tasks import StateTracking
from fpcheck.train import Recipe

SMALL = Recipe(
    name="small",
    task=StateTracking("S2", 4),
    model=FPRMConfig(
        vocab_size=3,
        seq_len=4,
        hidden_size=16,
        num_heads=2,
        L_layers=1,
        expansion=1.5,
        mlp_multiple=16,
        causal=True,
        conv_type="conv1d",
    ),
    steps=12,
    batch_size=16,
    window=3,
    max_windows=3,
    warmup=2,
    threads=1,
)
