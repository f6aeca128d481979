"""A comparison as tables, sentences, pictures and pages."""
