"""`python -m cmsa_fast` is the command `cmsa-fast`; torchrun starts it so in several processes."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
