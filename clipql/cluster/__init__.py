"""Many machines: the same SQL over shards, each of them an embedded database, carried by Ray (an extra, `clipql[ray]`)."""
