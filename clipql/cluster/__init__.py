"""Many machines: the same SQL over shards, each an embedded database, carried by Ray (an extra, `clipql[ray]`)."""
