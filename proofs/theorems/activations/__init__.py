"""Activations and gates: theorems of this chapter."""
