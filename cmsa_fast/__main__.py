"""`python -m cmsa_fast`: the command `cmsa-fast`, in the form that torchrun starts."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
