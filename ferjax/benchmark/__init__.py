"""How fast ferjax is, and PyTorch beside it: `ferjax benchmark --help`.

One file a benchmark: its `run(bench)` times some cases and returns a row for each, and its
`table(rows)` says what to print of them.
"""
