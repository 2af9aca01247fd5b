"""Normalisation: theorems of this chapter."""
