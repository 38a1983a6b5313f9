"""Planning of whole models, slices and modules."""
