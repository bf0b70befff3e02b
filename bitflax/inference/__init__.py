"""What a stored model says: predictor, engines, exports."""
