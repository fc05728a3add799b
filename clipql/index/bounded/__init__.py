"""Exact search that reads less: a scan of short codes rules rows out, and those that it cannot rule out are compared.

`coder` says what a code is and proves what it bounds; `kernels` has the loops; `file` keeps the codes of a column
beside it; `search` finds, with them, the rows that `flat.Scan` finds, which stays the reference.
"""
