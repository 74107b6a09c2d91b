"""One file per data set: what is at data.root, proven and indexed."""
