"""The programs of the toolkit, one per file; what they share lies in the folders (`metaprompt --help` lists them)."""
