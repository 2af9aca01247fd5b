"""Damping: theorems of this chapter."""
