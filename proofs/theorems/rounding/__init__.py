"""Rounding: theorems of this chapter."""
