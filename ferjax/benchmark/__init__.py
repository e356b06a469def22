"""Speed of ferjax, compared with PyTorch: `ferjax benchmark --help`.

Each benchmark is a module: `run(bench)` times some cases and returns a row for each, and
`table(rows)` selects the columns to print.
"""
