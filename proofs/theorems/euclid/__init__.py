"""Why the Euclidean norm fails: theorems of this chapter."""
