"""Plain weights: files of named tensors of any network, without layers or configuration."""
