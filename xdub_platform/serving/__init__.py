"""`xdub serve`: a job API over a durable queue, with one worker process for each device."""
