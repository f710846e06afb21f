"""Each tensor's range as a file: written, read, merged, and to and from the tables of other tools."""
