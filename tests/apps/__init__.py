"""Small applications that the tests run in processes of their own."""
