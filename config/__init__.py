"""Settings of a flairnode site: models, loader and an example."""
