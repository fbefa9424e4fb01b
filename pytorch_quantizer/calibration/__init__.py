"""Calibration: from images to statistics to fitted quantizers. Where quantizers go is graph/'s business."""
