"""What can go wrong with a theorem: it is written wrongly, a step is refuted, or a step is not decided."""


class ProofError(Exception):
    """A theorem did not pass."""


class MalformedError(ProofError, ValueError):
    """A theorem, step or constant is written wrongly: unknown label, float where an exact number belongs, ..."""


class RefutedError(ProofError):
    """A step is false; the message holds a point at which it fails, where one was found."""


class UndecidedError(ProofError):
    """A step is neither proved nor refuted. That is an error, never a pass."""
