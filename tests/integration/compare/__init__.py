"""`make compare`: what docs/comparison.md says of Dask and of pairio, tried on this machine.

Each side is a program that tries the same things and prints one JSON object of findings, by the
names of `findings.ROWS`. Dask runs in a virtual environment of its own (`.venv-compare`), since
pairio needs nothing of it.
"""
