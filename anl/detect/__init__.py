"""A trained detector in use: pictures of any size in, a calibrated probability and a verdict out."""
