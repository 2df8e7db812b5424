"""What a bug report needs to say, and what a newcomer gets wrong."""
