"""Attention: theorems of this chapter."""
