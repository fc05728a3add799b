"""The commands of `clipql`, one to a module: `add` describes its options, `run` does it."""
