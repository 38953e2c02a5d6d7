"""The paper's experiment on published data sets: protocols by registry id, images decoded in workers, a prior on the fly.

A generalisation of `anl.published`, which puts one small set into memory: here rows come from manifests (`anl index`), and
pixels from the files, whenever a worker needs them.
"""
