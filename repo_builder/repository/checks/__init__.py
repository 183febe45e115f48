"""What `repo-builder validate` checks of one model: each module is one question, each check yields findings."""
