"""What runs inside an engine's own processes. Only here are torch and vLLM imported."""
