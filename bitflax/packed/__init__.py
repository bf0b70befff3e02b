"""The 1-bit file: codes, metadata and tokenizer, written and read strictly."""
