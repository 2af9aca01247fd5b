"""Halting: theorems of this chapter."""
