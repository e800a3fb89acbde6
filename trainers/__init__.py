"""Methods, one a file. Every file here is found by itself; files from elsewhere come by `--plugin` or entry point."""
