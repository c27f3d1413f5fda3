"""The OpenAI-compatible server and its page. HTTP parses, templates and tokenises; the engine's worker computes."""
