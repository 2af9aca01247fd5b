"""From a point to a ball: theorems of this chapter."""
