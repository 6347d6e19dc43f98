"""`python -m slimcore`: the command line from a plain checkout."""

from slimcore.cli import main

main()
