"""What report.html is made of: figures, charts, confusions, small pictures, and the page itself."""
