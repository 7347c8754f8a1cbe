"""What happens without a hand: jobs of the planner, schedule, sensors, freshness, webhook."""
