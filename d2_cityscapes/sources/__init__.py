"""Other people's formats read as pictures and maps of instance ids: one module a format."""
