"""Programs that the tests run in interpreters of their own."""
