"""From texts to batches: files, named tasks, corpora, tokens, metrics."""
