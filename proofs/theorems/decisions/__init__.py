"""Decision stability: theorems of this chapter."""
