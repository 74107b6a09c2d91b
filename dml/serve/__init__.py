"""An index as a web page and as a JSON API: `dml-search serve=true`."""
