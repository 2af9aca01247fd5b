"""Gradients: theorems of this chapter."""
