"""The web entry: create_app(settings) makes the Flask application and hangs the parts into it.

Knows which routes and commands there are. Does not know cryptography, XML or SQL. Under the `flask` command with faulty
settings the application has its commands alone, so that `flask doctor` and `--help` can tell what is wrong.
"""

from __future__ import annotations

import os

from flask import Flask, Request
from flask.sessions import NullSession, SessionInterface
from pydantic import SecretStr
from werkzeug.exceptions import InternalServerError, MethodNotAllowed, NotFound
from werkzeug.middleware.proxy_fix import ProxyFix

import commands
import config
import logs
import parts
from config import Settings, SettingsError, settings_of_commands, settings_of_libraries
from storage.sign_ins import Attempts
from web import callback, gallery, ops, token_server


def create_app(settings: Settings | None = None) -> Flask:
    """The application for `settings`, by default the server's or the environment's. Raises `SettingsError`."""
    app = Flask(__name__, static_folder=None)
    app.session_interface = _NoSessions()
    app.url_map.merge_slashes = False  # werkzeug's redirect fails with an encoded line break in the path
    commands.add_to(app)
    if settings is None:
        on_command_line = os.environ.get("FLASK_RUN_FROM_CLI") == "true"
        for name, value in settings_of_libraries().items():
            os.environ.setdefault(name, value)
        environ = settings_of_commands(os.environ) if on_command_line else os.environ
        try:
            settings = config.of_this_server or Settings.from_env(environ)
        except SettingsError as error:
            if not on_command_line:
                raise
            commands.use_without_settings(app, error)
            return app
    logs.configure(settings.log_format, settings.log_level)
    app.config["MAX_CONTENT_LENGTH"] = 65536  # bytes of any body; pushes have a limit of their own
    built = parts.build(settings)
    app.extensions["parts"] = built
    app.register_blueprint(
        callback.callback(
            built.receiver,
            built.answers,
            built.refusals,
            max_push_bytes=settings.max_push_bytes,
            token=settings.wechat_token.get_secret_value(),
        )
    )
    app.register_blueprint(
        ops.ops(
            built.database,
            built.ledger,
            built.queue,
            built.files,
            built.tokens,
            built.token,
            key=_secret(settings.metrics_key),
        )
    )
    app.register_error_handler(MethodNotAllowed, callback.wrong_method)
    app.register_error_handler(NotFound, callback.not_found)
    app.register_error_handler(InternalServerError, ops.fault)
    app.register_error_handler(UnicodeDecodeError, lambda error: ("", 400))  # a query that is not UTF-8
    if settings.token_server_key is not None:
        key = settings.token_server_key.get_secret_value()
        app.register_blueprint(
            token_server.token_server(
                built.token,
                Attempts(built.database, "token key"),
                key=key,
                appid=settings.wechat_appid,
            )
        )
    if settings.admin_password is not None:
        app.register_blueprint(
            gallery.gallery(
                built.database,
                built.ledger,
                built.queue,
                built.purge_rows,
                built.rows,
                built.files,
                built.thumbnails,
                password=settings.admin_password.get_secret_value(),
                zone=settings.zone,
            )
        )
    if hops := settings.proxy_hops:
        proxied = ProxyFix(app.wsgi_app, x_for=hops, x_proto=hops, x_host=hops, x_port=hops)
        app.wsgi_app = proxied  # type: ignore[method-assign]
    return app


def _secret(setting: SecretStr | None) -> str | None:
    return setting.get_secret_value() if setting is not None else None


class _NoSessions(SessionInterface):
    """Nothing here uses Flask's session: without this it looks for one, and makes an empty one, for each push."""

    _none = NullSession()

    def open_session(self, app: Flask, request: Request) -> NullSession:
        return self._none

    def is_null_session(self, obj: object) -> bool:
        return True
