"""Two processes instead of one (decision D15).

One reads what others wrote and may do nothing; one may program the kernel, and reads nothing but what the first sends,
message by message.
"""
