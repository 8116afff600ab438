"""The running node: intake, durable workflow, delivery and the command line. No voxels."""
