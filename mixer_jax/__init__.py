"""MLP vision models in JAX, starting from MLP-Mixer (arXiv:2105.01601)."""
