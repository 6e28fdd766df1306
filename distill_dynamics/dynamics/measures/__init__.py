"""Pure functions of activations; torch alone."""
