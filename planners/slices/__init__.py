"""Planning of merges of models, slices and modules."""
