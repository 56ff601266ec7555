"""Language models for offline batch work: asked over HTTP or in this process, checked, paid for once, accounted for.

`calls` (what is asked and answered), `chat` and `local` (the two drivers), `endpoint` (HTTP with retries, breaker and
limits), `structured` (answers under a JSON schema), `cache`, `budget`, `tokens`, `prompts`, and `job`, which puts them
together. `embeddings` is a text encoder over the same HTTP.
"""
