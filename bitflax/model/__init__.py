"""BERT as a pure function of a parameter tree, and its Hugging Face form."""
