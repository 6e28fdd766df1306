"""`analyze`: the dynamics of models that are there, on a folder of images."""
