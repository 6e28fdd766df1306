"""A teacher's answers, computed once over a fixed number of views of each image and read while training."""
