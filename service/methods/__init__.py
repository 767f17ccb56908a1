"""The ways to choose a plan's widths, one file a family; `service.planner` asks them."""
