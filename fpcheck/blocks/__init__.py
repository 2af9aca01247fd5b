"""Reference blocks: FPRM in every official variant, TRM, linear attention as gradient descent; loaders of weights."""

from fpcheck.blocks.config import FPRMConfig, TRMConfig
from fpcheck.blocks.contractive import ContractiveBlock, ContractiveConfig, ContractiveModel
from fpcheck.blocks.fprm import FPRMBlock, FPRMModel
from fpcheck.blocks.linear_attention import LinearAttentionGD
from fpcheck.blocks.model import LoopedModel
from fpcheck.blocks.official import load_official
from fpcheck.blocks.shipped import load, load_folder, save_model, shipped_models
from fpcheck.blocks.trm import TRMBlock, TRMModel

__all__ = [
    "ContractiveBlock",
    "ContractiveConfig",
    "ContractiveModel",
    "FPRMBlock",
    "FPRMConfig",
    "FPRMModel",
    "LinearAttentionGD",
    "LoopedModel",
    "TRMBlock",
    "TRMConfig",
    "TRMModel",
    "load",
    "load_folder",
    "load_official",
    "save_model",
    "shipped_models",
]
