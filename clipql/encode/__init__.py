"""Words and pictures to vectors: tokenizer, preprocessing, models and where their weights come from."""
