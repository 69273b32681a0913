"""What a finished run gives away (`export`), and loading it again (`load`)."""
