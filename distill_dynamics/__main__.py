"""`python -m distill_dynamics`."""

from distill_dynamics.cli.main import main

main()
