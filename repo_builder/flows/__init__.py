"""The only files that know the order of the stages."""
