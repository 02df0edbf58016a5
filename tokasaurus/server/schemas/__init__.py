"""OpenAI's shapes: requests as pydantic models, responses as msgspec structs."""
