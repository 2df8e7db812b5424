"""The documentation site: pages of docs/ and of elsewhere, and those that the code makes."""
