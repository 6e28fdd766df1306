"""Data sets in chunk files: written by `convert`, read from a disk or from object storage."""
