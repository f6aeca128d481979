"""What may stand in a configuration: schema, rules, safety, and the messages of what is refused."""
