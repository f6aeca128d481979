"""One run: build, fit, resume, adjust, record."""
