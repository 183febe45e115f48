"""What every room shares: errors, files, tensors, graphs, recipes, artifacts, the machine. It knows no stage."""
