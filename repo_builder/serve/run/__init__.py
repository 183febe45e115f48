"""Starting Triton and looking after it: in the official container, embedded, or left running."""
