"""Reference blocks: FPRM in every official variant, the TRM recursion, and loaders of their weights."""

from fpcheck.blocks.config import FPRMConfig, TRMConfig
from fpcheck.blocks.fprm import FPRMBlock, FPRMModel
from fpcheck.blocks.model import LoopedModel
from fpcheck.blocks.official import load_official
from fpcheck.blocks.shipped import load, load_folder, save_model, shipped_models
from fpcheck.blocks.trm import TRMBlock, TRMModel

__all__ = [
    "FPRMBlock",
    "FPRMConfig",
    "FPRMModel",
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
