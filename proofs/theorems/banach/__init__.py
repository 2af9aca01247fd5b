"""Banach and the error of a computed state: theorems of this chapter."""
