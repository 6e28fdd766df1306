"""The command line: what is asked for, what is wrong with it, and what does it."""
