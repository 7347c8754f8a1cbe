"""What a training will take, from its settings alone: parameters, operations, memory, hours, bytes, partitions."""
