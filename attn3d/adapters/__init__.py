"""The library in the idioms of others. Each file imports the library that it adapts to."""
