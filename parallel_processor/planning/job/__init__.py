"""What is in a job: its requests are read, judged, compared and counted, and none is sent."""
