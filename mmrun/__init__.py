"""mmrun: an experiment runner for multimodal deep learning in which gradient clipping is a controlled variable."""
