"""One YAML file per model of the registry."""
