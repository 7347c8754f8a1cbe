"""Resources that the assets use: data registry, experiment tracking, quality gates, workers."""
