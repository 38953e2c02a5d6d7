"""A public data set in the place of the embedded benchmark: its split, its benchmark folder, the models it is studied with.

From the manifest of `anl index` on, everything runs as on the embedded benchmark: `anl.benchmark` reads what
`anl.published.benchmark` writes.
"""
