"""Whether a file is the image that it claims to be: decoded completely, in child processes."""
