"""`python -m distill_dynamics`."""

from distill_dynamics.cli import main

main()
