"""Shared set-up: Hypothesis profiles, one thread per worker."""

import os

import torch
from hypothesis import HealthCheck, settings

# dev: quick feedback. ci: the same examples every time, no clock. slow: a long search.
settings.register_profile("dev", max_examples=20, deadline=None)
settings.register_profile("ci", max_examples=50, deadline=None, derandomize=True, print_blob=True)
settings.register_profile("slow", max_examples=2000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile(os.environ.get("FPCHECK_HYPOTHESIS_PROFILE", "dev"))

# Workers run side by side (pytest -n 2): more threads each would only make them wait for each other.
torch.set_num_threads(1)
