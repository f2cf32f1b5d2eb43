"""The Triton model `preprocessing`: messages to frames and token ids.

Nothing is imported here, since decoder processes start from below it.
"""
