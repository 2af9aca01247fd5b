"""`python -m proofs [ID ...]`: check the theorems. The same as ``fpcheck prove``, without the package installed."""

import sys

from proofs.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
