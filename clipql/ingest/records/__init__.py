"""Files whose rows hold their own vectors: Parquet, Arrow, JSON lines, CSV, each also with a `.npy` beside it."""
