"""What is kept on disk: the output directory, and the index beside the images."""
