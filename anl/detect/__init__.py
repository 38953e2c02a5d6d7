"""A trained detector in use: images of any size in, a calibrated probability and a verdict out."""
