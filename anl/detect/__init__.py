"""Use a trained detector: images of any size in, a calibrated probability and a verdict out."""
