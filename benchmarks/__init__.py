"""Studies of this project: what is run, its records, and the tables and figures that are made from them.

Run from the root of the repository: `python -m benchmarks.runner --list`.
"""
