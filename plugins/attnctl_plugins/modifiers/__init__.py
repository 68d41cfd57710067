"""Built-in modifiers: additions to an edit that go with any method."""
