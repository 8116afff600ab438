"""The node's commands of the `flairnode` console script."""
