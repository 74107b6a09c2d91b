"""Getting published data sets, and looking at what is there: the parts of dml-data."""
