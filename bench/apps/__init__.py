"""What our server is measured against: one small WSGI application in each module, as its library's own pages show it."""
