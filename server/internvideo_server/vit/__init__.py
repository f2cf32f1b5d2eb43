"""The Triton model `vit`: frames to rows of the prompt table."""
