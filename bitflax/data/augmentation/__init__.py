"""A task's training examples in many variants (TinyBERT's augmentation)."""
