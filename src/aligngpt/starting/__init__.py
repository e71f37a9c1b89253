"""`aligngpt init`: looks at data and machine, and writes a commented recipe that fits the memory."""
