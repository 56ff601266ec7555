"""One file per model, and the registry that names them."""
