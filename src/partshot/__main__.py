"""`python -m partshot` is the command `partshot`."""

from partshot.cli import main

main()
