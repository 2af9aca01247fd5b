"""Typed, validated configurations of the reference blocks.

Field names are those of the official FPRM and TRM configurations, so an official configuration loads as it
is. Official keys that steer a run (solver, halting, training length) rather than the map itself are known by
name and set aside in ``run_settings``; anything else is an error that names the nearest valid key.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Self, get_args, get_origin, get_type_hints

from fpcheck.errors import ConfigError, nearest

__all__ = ["FPRMConfig", "TRMConfig"]

NormType = Literal["pre-norm", "peri-norm", "post-norm"]
NormPlacement = Literal["none", "input", "output"]
ConvType = Literal["none", "conv1d", "conv2d"]
ResidualScale = Literal["none", "fixed", "input-independent", "input-dependent"]
Positions = Literal["none", "rope", "learned"]

# Fields for which an empty YAML value means "none".
_NONE_KEYS = ("residual_scale", "norm_placement", "conv_type", "pos_encodings")

# Keys of official configurations that do not change the map z -> F(z; x).
RUN_KEYS = frozenset(
    {
        "batch_size", "forward_dtype", "H_layers", "n_backwards_L", "n_decode_steps",
        "max_iter", "max_iter_eval", "max_iter_dist", "fp_thresh", "eps", "stepsize",
        "stepsize_decay", "stepsize_decay_train", "stepsize_decay_eval", "decay_patience",
        "additive_noise_std", "halting_mechanism", "halt_max_steps", "halt_exploration_prob",
        "jacobian_reg", "n_jacobian_samples", "jacobian_reg_lambda", "jacobian_eps", "no_ACT_continue",
        "q_logit_detach_model", "outlier_quantile", "weight_dropout", "variational_dropout", "name", "loss",
        "puzzle_emb_optimizer", "gamma_alpha", "gamma_scale", "expon_scale",
    }
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """What the FPRM block and the TRM block share; field names are the official ones.

    ``seq_len`` counts content tokens, without the puzzle tokens in front of them.
    """

    vocab_size: int
    seq_len: int
    hidden_size: int
    num_heads: int
    L_layers: int = 2
    expansion: float = 4.0
    mlp_multiple: int = 256
    """The SwiGLU width is ``expansion * hidden_size * 2 / 3`` rounded up to a multiple of this."""
    puzzle_emb_ndim: int = 0
    puzzle_emb_len: int = 0
    num_puzzle_identifiers: int = 0
    pos_encodings: Positions = "rope"
    rope_theta: float = 10000.0
    causal: bool = False
    softmax_temp: float = 1.0
    mlp_t: bool = False
    rms_norm_eps: float = 1e-5
    norm_in_float32: bool = False
    """Compute norms in float32 and cast back, as the official code does; else in the state's own dtype."""
    q_logit_from_puzzle_emb: bool = True
    H_cycles: int = 1
    L_cycles: int = 1
    run_settings: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    """Official keys that were given but do not change the map, kept as they were."""

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Self:
        """Build from an official or own configuration mapping.

        Args:
            settings: Key/value pairs, official spelling.

        Raises:
            ConfigError: An unknown key or a missing one, or a value outside its set or range; the message names
                the nearest valid key or value.
        """
        if not isinstance(settings, Mapping):
            raise ConfigError(f"settings is a {type(settings).__name__}; expected a mapping of {cls.__name__} keys")
        own = {f.name for f in fields(cls)} - {"run_settings"}
        unknown = [k for k in settings if k not in own and k not in RUN_KEYS and k != "run_settings"]
        if unknown:
            raise ConfigError(
                f"unknown {cls.__name__} key {unknown[0]!r} (value {settings[unknown[0]]!r}); "
                + nearest(str(unknown[0]), sorted(own | RUN_KEYS))
            )
        required = {"vocab_size", "seq_len", "hidden_size", "num_heads"}
        missing = sorted(required - set(settings))
        if missing:
            raise ConfigError(f"{cls.__name__} lacks {', '.join(missing)}; add them to the configuration")
        values = {k: v for k, v in settings.items() if k in own}
        values |= {k: "none" for k in _NONE_KEYS if k in values and values[k] in (None, "None")}
        run = {k: v for k, v in settings.items() if k in RUN_KEYS} | dict(settings.get("run_settings", {}))
        return cls(**values, run_settings=run)

    def to_dict(self) -> dict[str, Any]:
        """Key/value pairs, without ``run_settings``, that :meth:`from_dict` reads back to an equal one."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "run_settings"}

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for f in fields(self):
            if f.name != "run_settings":
                _check_field(type(self).__name__, f.name, getattr(self, f.name), hints[f.name])
        self._check_ranges()

    def _check_ranges(self) -> None:
        at_least_one = ("vocab_size", "seq_len", "hidden_size", "num_heads", "L_layers", "mlp_multiple",
                        "H_cycles", "L_cycles")  # fmt: skip
        for name in at_least_one:
            self._require(getattr(self, name) >= 1, name, "an integer >= 1")
        for name in ("expansion", "softmax_temp", "rope_theta", "rms_norm_eps"):
            self._require(0 < getattr(self, name) < math.inf, name, "a finite number > 0")
        for name in ("puzzle_emb_ndim", "puzzle_emb_len", "num_puzzle_identifiers"):
            self._require(getattr(self, name) >= 0, name, "an integer >= 0")
        self._require(
            self.hidden_size % self.num_heads == 0, "hidden_size", f"a multiple of num_heads={self.num_heads}"
        )
        self._require(
            self.pos_encodings != "rope" or self.head_dim % 2 == 0,
            "hidden_size",
            f"hidden_size / num_heads even for rotary positions (got {self.head_dim})",
        )
        self._require(
            self.puzzle_emb_ndim > 0 or self.puzzle_emb_len == 0,
            "puzzle_emb_len",
            "0 when puzzle_emb_ndim is 0 (there is no vector to spread over puzzle tokens)",
        )
        self._require(
            self.puzzle_emb_ndim == 0 or self.puzzle_emb_ndim <= self.puzzle_tokens * self.hidden_size,
            "puzzle_emb_ndim",
            f"at most puzzle_emb_len * hidden_size = {self.puzzle_tokens * self.hidden_size}",
        )
        self._require(
            self.puzzle_emb_ndim == 0 or self.num_puzzle_identifiers >= 1,
            "num_puzzle_identifiers",
            "at least 1 when puzzle_emb_ndim > 0",
        )

    def _require(self, ok: bool, name: str, expected: str) -> None:
        if not ok:
            raise ConfigError(f"{type(self).__name__}: {name}={getattr(self, name)!r}; expected {expected}")

    @property
    def is_causal(self) -> bool:
        """Whether position t of F(z; x) depends on positions up to t alone. ``causal`` asks it of attention only."""
        return self.causal and not self.mlp_t

    @property
    def fixed_length(self) -> bool:
        """Whether the block takes sequences of exactly ``seq_len`` tokens, instead of at most that many."""
        return self.mlp_t

    @property
    def head_dim(self) -> int:
        """Channels per attention head."""
        return self.hidden_size // self.num_heads

    @property
    def puzzle_tokens(self) -> int:
        """Number of puzzle tokens in front of the content tokens."""
        if self.puzzle_emb_ndim == 0:
            return 0
        return self.puzzle_emb_len or -(-self.puzzle_emb_ndim // self.hidden_size)

    @property
    def positions(self) -> int:
        """Puzzle tokens plus content tokens: the length of the state."""
        return self.puzzle_tokens + self.seq_len

    def mlp_width(self, width: int) -> int:
        """Inner width of a SwiGLU over vectors of length ``width``."""
        inner = round(self.expansion * width * 2 / 3)
        return -(-inner // self.mlp_multiple) * self.mlp_multiple


@dataclass(frozen=True, kw_only=True)
class FPRMConfig(BackboneConfig):
    """The FPRM block in all its official variants (arXiv 2606.18206 and its released code)."""

    norm_type: NormType = "pre-norm"
    norm_placement: NormPlacement = "none"
    conv_type: ConvType = "none"
    conv_kernel_size: int = 4
    conv_bias: bool = False
    residual_scale: ResidualScale = "input-independent"
    outer_only: bool = False
    alpha_1_init: float = 0.5
    alpha_2_init: float = 0.5
    normalize_input_injection: bool = False
    use_spec_norm_linear: bool = False
    init_std: float = 1.0
    """Standard deviation of the start state's entries (truncated normal); 0 starts from zero."""
    fixed_init: bool = False
    """Start every position from one stored vector instead of fresh draws."""

    @property
    def is_causal(self) -> bool:
        """Whether position t of F(z; x) depends on positions up to t alone. ``causal`` asks it of attention only."""
        return super().is_causal and self.conv_type != "conv2d"

    @property
    def fixed_length(self) -> bool:
        """Whether the block takes sequences of exactly ``seq_len`` tokens, instead of at most that many."""
        return super().fixed_length or self.conv_type == "conv2d"

    def _check_ranges(self) -> None:
        super()._check_ranges()
        for name in ("alpha_1_init", "alpha_2_init"):
            self._require(0 < getattr(self, name) < 1, name, "a number strictly between 0 and 1")
        self._require(self.conv_kernel_size >= 1, "conv_kernel_size", "an integer >= 1")
        self._require(
            self.conv_type != "conv2d" or self.conv_kernel_size % 2 == 1,
            "conv_kernel_size",
            "odd for conv_type='conv2d'",
        )
        self._require(
            self.conv_type != "conv2d" or round(self.seq_len**0.5) ** 2 == self.seq_len,
            "seq_len",
            "a square number for conv_type='conv2d' (the tokens are laid out as a square grid)",
        )
        self._require(0 <= self.init_std < math.inf, "init_std", "a finite number >= 0")
        # Without input-dependent scales the official code never builds this layer, whatever the flag says.
        self._require(
            not (self.use_spec_norm_linear and self.residual_scale == "input-dependent"),
            "use_spec_norm_linear",
            "False: that official layer updates its buffers in evaluation too, so the block is no function of z",
        )


@dataclass(frozen=True, kw_only=True)
class TRMConfig(BackboneConfig):
    """The TRM recursion: two states, post-norm, no residual scaling, ACT head (TRM release e7b6871).

    One loop step is ``H_cycles`` times: ``L_cycles`` updates of the latent state, then one of the answer.
    """

    def _check_ranges(self) -> None:
        super()._check_ranges()
        self._require(self.q_logit_from_puzzle_emb, "q_logit_from_puzzle_emb", "True for TRM")


def _check_field(owner: str, name: str, value: object, hint: object) -> None:
    if get_origin(hint) is Literal:
        valid = get_args(hint)
        if value not in valid:
            raise ConfigError(f"{owner}: unknown {name}={value!r}; " + nearest(str(value), valid))
        return
    right = {
        bool: isinstance(value, bool),
        int: isinstance(value, int) and not isinstance(value, bool),
        float: isinstance(value, int | float) and not isinstance(value, bool),
    }[hint]  # type: ignore[index]  # fields are Literal, bool, int or float only
    if not right:
        expected = getattr(hint, "__name__", str(hint))
        raise ConfigError(f"{owner}: {name}={value!r} is a {type(value).__name__}; expected {expected}")
