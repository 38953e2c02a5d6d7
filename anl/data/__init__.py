"""Data: photographs, public data sets, their files and indices, crops, and what is done to an image before it is scored."""

REAL = "real"  # name of real images in the column `generator`
