"""Train a model: the same as `cmsa-fast train`. See `python train.py --help`."""

import sys

from cmsa_fast.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
