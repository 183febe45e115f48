"""Model repositories: config.pbtxt, the tree that Triton reads, and the check that both hold together."""
