class PromptingError(ValueError):
    """Something the caller gave is wrong: a name, a file, a class list. The message is one line and says what to do."""
