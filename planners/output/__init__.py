"""What the output consists of besides merged tensors: shards, config.json, other files."""
