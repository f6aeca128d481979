"""Configuration: schema, rules, safety checks, and one-line error messages."""
