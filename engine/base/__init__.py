"""Words that the whole engine shares: dtypes, grains, units, errors."""
