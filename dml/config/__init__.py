"""Configuration: types and ranges, rules across groups, composition. Never imports torch."""
