"""One merge method, or one family of methods, a file."""
