"""The autoregressive predictor: trained on scored configurations, it plans for any budget in milliseconds."""
