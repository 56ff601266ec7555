"""The HTTP service: reads one exported bundle and answers requests; needs no torch.

A request's path, one module a step: `app` (assembly), `observed` (request id, limits, counts), `api` and `page`
(routes), `service` (what they share), `recommender` (the answer), `encoder`, `state`, `items`.
"""
