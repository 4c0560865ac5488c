"""HTTP surfaces: the OpenAI API, the dashboard, the JSON API, metrics and live streams."""
