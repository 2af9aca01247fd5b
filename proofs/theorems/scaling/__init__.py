"""Residual scaling: theorems of this chapter."""
