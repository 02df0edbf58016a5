"""Model families: each is a spec read from config.json and a map of weight names."""
