"""One short module per command, and the `recsys` command line that joins them."""
