"""Hypothesis strategies for the library's own types."""

import torch
from hypothesis import strategies as st

from fpcheck.blocks import FPRMConfig, FPRMModel, LoopedModel, TRMConfig, TRMModel


def _backbone() -> dict:
    return {
        "vocab_size": st.just(7),
        "seq_len": st.sampled_from([4, 9]),  # squares, so that conv2d fits
        "hidden_size": st.just(8),
        "num_heads": st.sampled_from([1, 2]),
        "L_layers": st.integers(1, 2),
        "expansion": st.sampled_from([1.0, 2.5]),
        "mlp_multiple": st.just(4),
        "pos_encodings": st.sampled_from(["none", "rope", "learned"]),
        "causal": st.booleans(),
        "softmax_temp": st.sampled_from([0.7, 1.0]),
        "mlp_t": st.booleans(),
    }


# 12 numbers over tokens of width 8: two tokens, the second half empty, or three with one empty.
_PUZZLES = st.sampled_from(
    [
        {},
        {"puzzle_emb_ndim": 12, "num_puzzle_identifiers": 3},
        {"puzzle_emb_ndim": 12, "puzzle_emb_len": 3, "num_puzzle_identifiers": 3},
    ]
)


@st.composite
def fprm_configs(draw, **fixed) -> FPRMConfig:
    """Small FPRM configurations over every official variant; ``fixed`` values or strategies take precedence."""
    conv_type = fixed.pop("conv_type", None) or draw(st.sampled_from(["none", "conv1d", "conv2d"]))
    options = {
        **_backbone(),
        "norm_type": st.sampled_from(["pre-norm", "peri-norm", "post-norm"]),
        "norm_placement": st.sampled_from(["none", "input", "output"]),
        "conv_type": st.just(conv_type),
        "conv_kernel_size": st.sampled_from([1, 3] if conv_type == "conv2d" else [1, 2, 4]),
        "conv_bias": st.booleans(),
        "residual_scale": st.sampled_from(["none", "fixed", "input-independent", "input-dependent"]),
        "outer_only": st.booleans(),
        "normalize_input_injection": st.booleans(),
    }
    options |= {k: v if isinstance(v, st.SearchStrategy) else st.just(v) for k, v in fixed.items()}
    return FPRMConfig(**draw(st.fixed_dictionaries(options)), **draw(_PUZZLES))


@st.composite
def trm_configs(draw, **fixed) -> TRMConfig:
    """Small TRM configurations."""
    options = {**_backbone(), "H_cycles": st.integers(1, 2), "L_cycles": st.integers(1, 2)}
    options |= {k: v if isinstance(v, st.SearchStrategy) else st.just(v) for k, v in fixed.items()}
    return TRMConfig(**draw(st.fixed_dictionaries(options)), **draw(_PUZZLES))


def looped_model(config: FPRMConfig | TRMConfig, seed: int = 0) -> LoopedModel:
    """A model in evaluation mode whose weights depend on ``seed`` alone; no weight is left at zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = TRMModel(config) if isinstance(config, TRMConfig) else FPRMModel(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim and not parameter.any():
                    parameter.normal_()
    return model.eval()


def batch_of(model: LoopedModel, samples: int = 3, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """An injection and a random state of unit scale, ``samples`` samples, in the model's dtype."""
    config = model.config
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randint(config.vocab_size, (samples, config.seq_len), generator=generator)
    puzzles = torch.arange(samples) % 3 if config.puzzle_emb_ndim else None
    x = model.injection(inputs, puzzles).detach()
    z = torch.randn(model.initial_state(x).shape, generator=generator, dtype=torch.float64).to(x.dtype)
    return x, z
