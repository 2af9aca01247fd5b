"""Metrics and k steps: theorems of this chapter."""
