"""Files that go into the folders of Python models as they are: they import nothing of this package."""
