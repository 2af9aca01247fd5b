"""Samples: theorems of this chapter."""
