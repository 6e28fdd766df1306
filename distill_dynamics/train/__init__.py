"""What a training is made of, beside the models and the losses."""
