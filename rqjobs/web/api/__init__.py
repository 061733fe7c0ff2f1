"""The JSON API under `/api`: one table of operations drives the routes, the checks and OpenAPI."""
