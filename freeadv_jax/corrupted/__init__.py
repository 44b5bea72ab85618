"""Accuracy on images with common corruptions: noise, blur, weather, compression."""
