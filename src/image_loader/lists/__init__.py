"""Lists: lines become URLs, and URLs become file names."""
