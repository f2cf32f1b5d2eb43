"""What serving needs of a checkpoint beside its vision part: the language model, the tokenizer, the grammar description."""
