"""What the commands do, one module each; the command line is in cmsa_fast/cli.py."""
