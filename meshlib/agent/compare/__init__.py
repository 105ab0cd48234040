"""What two proxies do, side by side: each projected to frontend -> endpoints, however its rules look."""
