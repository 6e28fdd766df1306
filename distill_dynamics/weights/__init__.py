"""Weights that come with the package: `checkpoint: packaged:NAME`. README.md here says what they are."""
