"""The health of a labelled set of images: dml-data doctor."""
