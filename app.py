"""The web entry: create_app(settings) makes the Flask application from the parts.

Knows which routes and commands there are. Must not know cryptography, XML or SQL. With faulty settings the `flask`
command gets an application without routes, so that `flask doctor` and `--help` still work; with faulty handlers too.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from flask import Flask, Request
from flask.sessions import NullSession, SessionInterface
from pydantic import SecretStr
from werkzeug.exceptions import InternalServerError
from werkzeug.middleware.proxy_fix import ProxyFix

import commands
import config
import handlers
import logs
import parts
from config import Settings, SettingsError, settings_of_commands, settings_of_libraries
from storage.sign_ins import Attempts
from web import callback, ops, token_server
from web.gallery.pages import AccountEntries, gallery


def create_app(settings: Settings | Sequence[Settings] | None = None) -> Flask:
    """The application for `settings`, one account's or several accounts', by default the server's or the environment's.

    Raises `SettingsError`, and `HandlerError` for a faulty table of handlers.
    """
    app = Flask(__name__, static_folder=None)
    app.session_interface = _NoSessions()
    app.url_map.merge_slashes = False  # werkzeug's redirect fails with an encoded line break in the path
    commands.add_to(app)
    on_command_line = settings is None and os.environ.get("FLASK_RUN_FROM_CLI") == "true"
    try:
        if settings is None:
            for name, value in settings_of_libraries().items():
                os.environ.setdefault(name, value)
            environ = settings_of_commands(os.environ) if on_command_line else os.environ
            settings = config.of_this_server or Settings.of_accounts(environ)
        of_each = [settings] if isinstance(settings, Settings) else settings
        handlers.check([one.account for one in of_each if one.account])
    except (SettingsError, handlers.HandlerError) as error:
        if not on_command_line:
            raise
        commands.use_without_parts(app, error)
        return app
    common = of_each[0]
    logs.configure(common.log_format, common.log_level)
    app.config["MAX_CONTENT_LENGTH"] = 65536  # bytes of any body; pushes have a limit of their own
    built = parts.build(*of_each)
    app.extensions["accounts"] = built
    _add_callbacks(app, built)
    watched = {
        name: ops.Watched(one.settings.callback_path, one.ledger, one.queue, one.tokens, one.token)
        for name, one in built.of.items()
    }
    app.register_blueprint(ops.ops(watched, built.database, built.files, key=_secret(common.metrics_key)))
    app.register_error_handler(InternalServerError, ops.fault)
    app.register_error_handler(UnicodeDecodeError, lambda error: ("", 400))  # a query that is not UTF-8
    _add_token_server(app, built)
    if common.admin_password is not None:
        entries = [
            AccountEntries(name, one.settings.wechat_appid, one.queue, one.purge_rows)
            for name, one in built.of.items()
        ]
        app.register_blueprint(
            gallery(
                entries,
                built.database,
                built.rows,
                built.files,
                built.thumbnails,
                password=common.admin_password.get_secret_value(),
                zone=common.zone,
            )
        )
    if hops := common.proxy_hops:
        proxied = ProxyFix(app.wsgi_app, x_for=hops, x_proto=hops, x_host=hops, x_port=hops)
        app.wsgi_app = proxied  # type: ignore[method-assign]
    return app


def _add_callbacks(app: Flask, accounts: parts.Accounts) -> None:
    """Adds the callback of each account that has a WECHAT_TOKEN. If there is only one, it answers at /wechat too."""
    with_callback = [one for one in accounts.of.values() if one.receiver is not None]
    accounts_by_path: dict[str, str] = {}
    for one in with_callback:
        settings = one.settings
        assert one.receiver is not None
        assert settings.wechat_token is not None
        assert settings.callback_path is not None
        paths = [settings.callback_path]
        if len(with_callback) == 1 and "/wechat" not in paths:
            paths.append("/wechat")
        app.register_blueprint(
            callback.callback(
                one.receiver,
                one.answers,
                one.refusals,
                paths=paths,
                account=settings.account,
                max_push_bytes=settings.max_push_bytes,
                token=settings.wechat_token.get_secret_value(),
            )
        )
        accounts_by_path |= dict.fromkeys(paths, settings.account)
    callback.tell_of_wrong_requests(app, accounts_by_path)


def _add_token_server(app: Flask, accounts: parts.Accounts) -> None:
    """Adds the token routes, for the accounts that have a TOKEN_SERVER_KEY: their own, the common one, or both."""
    served = {}
    for one in accounts.of.values():
        keys = (one.settings.own_token_server_key, one.settings.token_server_key)
        if set_keys := tuple(key.get_secret_value() for key in keys if key is not None):
            served[one.settings.wechat_appid] = token_server.Served(one.settings.account, one.token, set_keys)
    if served:
        app.register_blueprint(token_server.token_server(served, Attempts(accounts.database, "token key")))


def _secret(setting: SecretStr | None) -> str | None:
    return setting.get_secret_value() if setting is not None else None


class _NoSessions(SessionInterface):
    """No Flask session: otherwise Flask would look for one, and make an empty one, for each push."""

    _none = NullSession()

    def open_session(self, app: Flask, request: Request) -> NullSession:
        return self._none

    def is_null_session(self, obj: object) -> bool:
        return True
