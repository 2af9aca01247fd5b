"""What a benchmark ran on, in words."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path

import torch


def cpu() -> str:
    info = Path("/proc/cpuinfo")
    models = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    name = models[0].split(":")[1].strip() if models else platform.processor() or platform.machine()
    return f"{name} ({len(models) or '?'} cores)"


def machine() -> str:
    """Processor, threads, versions."""
    return (
        f"{cpu()}, {torch.get_num_threads()} thread(s); Python {platform.python_version()}, torch {torch.__version__}, "
        f"fpcheck {version('fpcheck')}; float64"
    )
