"""Tables with vector columns: where ClickHouse's half (MergeTree) and ours (segments) are kept as one.

`registry` holds what is there, `schema` makes and alters, `writer` commits rows, `recover` finishes what a crash
cut off.
"""
