"""The bot with its stock handlers, whatever is in handlers/own.py: gunicorn and flask load it in place of app.py."""

import app
import handlers

handlers.HANDLERS = handlers.STOCK_HANDLERS
handlers.ACCOUNT_HANDLERS = {}
handlers.OWN_FAULT = None
create_app = app.create_app
