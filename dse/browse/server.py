"""`dse browse`: the server. On loopback by default; anywhere else it asks for a token."""

from __future__ import annotations

import hmac
import logging
import secrets
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote

import flask
import plotly
from dash import (
    ALL,
    ClientsideFunction,
    Dash,
    Input,
    Output,
    State,
    clientside_callback,
    ctx,
    no_update,
)
from dash.fingerprint import build_fingerprint
from werkzeug.serving import BaseWSGIServer, make_server

from dse.browse.callbacks import register
from dse.browse.confusion import matrix
from dse.browse.design import design_page
from dse.browse.jobs import Jobs, bundle
from dse.browse.layout import main_page, message_page, shell
from dse.browse.library import Library
from dse.browse.view import View
from dse.errors import DseError, StudyError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
PORT = 8050
COOKIE = "dse_browse"
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' "
    "'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; frame-ancestors 'none'"
)


def make_app(library: Library, *, host: str = "127.0.0.1", token: str = "") -> Dash:
    """The app over a library. With a token every request needs it; without, a loopback host."""
    app = Dash(
        "dse.browse",
        title="dse browse",
        update_title="",
        suppress_callback_exceptions=True,
        assets_folder="assets",
        meta_tags=[{"name": "viewport", "content": "width=device-width, initial-scale=1"}],
    )
    app.index_string = _INDEX.replace("{early}", _early(app))
    app.layout = shell()
    jobs = Jobs(library.url)
    _guard(app.server, host, token)
    _files(app.server, library)
    _pages(app, library)
    _verifying(app, jobs, loopback=host in LOOPBACK, library=library)
    _classifying(app, jobs, loopback=host in LOOPBACK, library=library)
    register(app, library)
    _scripts()
    return app


_INDEX = """<!DOCTYPE html>
<html lang="en">
<head>
{%metas%}<title>{%title%}</title>{%favicon%}{%css%}
{early}
<script>try { const t = localStorage.getItem("dse-theme");
if (t) document.documentElement.dataset.theme = t; } catch (error) { /* not stored */ }
</script>
</head>
<body>{%app_entry%}<footer>{%config%}{%scripts%}{%renderer%}</footer></body>
</html>
"""


# Parts of Dash that it would ask for only when it meets the first figure, menu and slider.
_PARTS = ("graph", "dropdown", "slider")


def _early(app: Dash) -> str:
    """Links that load early what Dash asks for late. assets/browse.js runs plotly's script."""
    package = Path(plotly.__file__).parent
    script = "package_data/plotly.min.js"
    modified = int((package / script).stat().st_mtime)
    # Dash leaves these two without types.
    name = build_fingerprint(script, plotly.__version__, modified)  # type: ignore[no-untyped-call]
    paths = [f"plotly/{name}", *(f"dash/dcc/async-{part}.js" for part in _PARTS)]
    suites = app.get_relative_path("/_dash-component-suites/")  # type: ignore[no-untyped-call]
    return "".join(f'<link rel="preload" as="script" href="{suites}{path}">' for path in paths)


def _guard(server: flask.Flask, host: str, token: str) -> None:
    """Refuse other hosts' names (DNS rebinding) on loopback; elsewhere, who lacks the token."""

    @server.before_request
    def check() -> Any:
        origin = flask.request.headers.get("Origin")
        if origin and origin.split("://")[-1] != flask.request.host:
            return "Another page may not use this one.", 403
        if not token:
            name = flask.request.host.rsplit(":", 1)[0].strip("[]")
            allowed = name in LOOPBACK or name == host
            return None if allowed else ("This page answers to localhost only.", 403)
        given = flask.request.args.get("token") or flask.request.cookies.get(COOKIE, "")
        if not hmac.compare_digest(given.encode(), token.encode()):
            return "This page needs the token that dse browse printed: add ?token=…", 403
        if flask.request.args.get("token"):
            answer = flask.redirect(flask.request.path)
            answer.set_cookie(COOKIE, token, httponly=True, samesite="Strict")
            return answer
        return None

    @server.after_request
    def headers(answer: flask.Response) -> flask.Response:
        answer.headers["Content-Security-Policy"] = _POLICY
        answer.headers["X-Content-Type-Options"] = "nosniff"
        answer.headers["Referrer-Policy"] = "no-referrer"
        return answer


def _files(server: flask.Flask, library: Library) -> None:
    @server.get("/bundle/<path:study>/<int:number>.zip")
    def download(study: str, number: int) -> Any:
        try:
            content = bundle(library.url, study, number)
        except DseError as error:
            return flask.Response(library.public(str(error)), 422, mimetype="text/plain")
        name = f"{study}-{number}.zip".replace("/", "_")
        answer = flask.Response(content, mimetype="application/zip")
        answer.headers.set("Content-Disposition", "attachment", filename=name)
        return answer


def _pages(app: Dash, library: Library) -> None:
    @app.callback(Output("page", "children"), Input("url", "pathname"), State("url", "search"))
    def show(path: str | None, search: str | None) -> Any:
        try:
            if path and path.startswith("/design/"):
                study, _, number = path.removeprefix("/design/").rpartition("/")
                if not number.isdigit():
                    raise StudyError("the address of a design ends with its number")
                return design_page(library, unquote(study), int(number))
            return _main(library, parse_qs((search or "").lstrip("?")))
        except DseError as error:
            text = library.public(str(error))
            return message_page("Nothing to show", text[:1].upper() + text[1:] + ".")


def _main(library: Library, query: dict[str, list[str]]) -> list[Any]:
    studies = library.summaries()
    if not studies:
        raise StudyError("the database holds no study yet; start one with 'dse run STUDY.yaml'")
    overviews = library.overviews(library.known(query.get("study", [])))
    table = library.joined(overviews)
    given = {key: values[0] for key, values in query.items() if key != "study"}
    try:
        view, problem = View.of(overviews, table, given.get("where", "")), ""
    except DseError as error:
        view, problem = View.of(overviews, table), str(error)
    return main_page(view, studies, library.shown_name, given, problem)


ELSEWHERE = "Only from the machine that serves this page; use the command below."


def _asked(path: str) -> tuple[str, int] | None:
    """The study and trial of a design's address."""
    study, _slash, number = unquote(path).removeprefix("/design/").rpartition("/")
    return (study, int(number)) if number.isdigit() else None


def _verifying(app: Dash, jobs: Jobs, *, loopback: bool, library: Library) -> None:
    @app.callback(
        Output("verify-status", "children"),
        Input({"type": "verify", "number": ALL}, "n_clicks"),
        Input("tick", "n_intervals"),
        State("url", "pathname"),
        prevent_initial_call=True,
    )
    def verify(clicks: list[int], _: int, path: str) -> Any:
        design = _asked(path)
        if design is None:
            return no_update
        if isinstance(ctx.triggered_id, dict) and any(clicks):
            if not loopback:
                return ELSEWHERE
            jobs.add("verify", *design)
        return library.public(jobs.state("verify", *design))


def _classifying(app: Dash, jobs: Jobs, *, loopback: bool, library: Library) -> None:
    @app.callback(
        Output("confusion-status", "children"),
        Output("confusion-body", "children"),
        Input({"type": "confusion", "number": ALL}, "n_clicks"),
        Input("tick", "n_intervals"),
        State("url", "pathname"),
        State("confusion-status", "children"),
        prevent_initial_call=True,
    )
    def classify(clicks: list[int], _: int, path: str, before: str | None) -> tuple[Any, Any]:
        design = _asked(path)
        if design is None:
            return no_update, no_update
        if isinstance(ctx.triggered_id, dict) and any(clicks):
            if not loopback:
                return ELSEWHERE, no_update
            jobs.add("confusion", *design)
        said = library.public(jobs.state("confusion", *design))
        if said == (before or ""):
            return no_update, no_update
        if said.startswith("done"):
            return said, matrix(library, *design) or no_update
        return said, no_update


def _scripts() -> None:
    """What the browser does by itself: what lies below comes late; the address keeps the view.

    `start` changes when the front that came with the page is on the screen, `late` after the
    scatter was drawn anew for other trials, `late-mark` for newer ones.
    """
    clientside_callback(
        """(studies, where, x, y, z, colour, symbol) => {
          const said = new URLSearchParams((studies || []).map((name) => ["study", name]));
          const given = { where, x, y, z, colour, symbol };
          for (const [key, value] of Object.entries(given)) if (value) said.set(key, value);
          if (location.pathname === "/") history.replaceState(history.state, "", "/?" + said);
          return window.dash_clientside.no_update;
        }""",
        Output("address", "data"),
        Input("studies", "value"),
        Input("where", "data"),
        *(Input(name, "value") for name in ("x", "y", "z", "colour", "symbol")),
    )
    clientside_callback(
        ClientsideFunction("browse", "list"), Output("listed", "data"), Input("listing", "data")
    )
    clientside_callback(
        """(figure, before) => new Promise((done) => {
          if (before) return done(window.dash_clientside.no_update);
          const look = () => {
            const drawn = document.querySelector("#scatter .js-plotly-plot")?.data;
            if (drawn) requestAnimationFrame(() => setTimeout(() => done(true), 80));
            else setTimeout(look, 30);
          };
          look();
        })""",
        Output("start", "data"),
        Input("scatter", "figure"),
        State("start", "data"),
    )
    clientside_callback(
        """(figure, mark, where, selection, before) => new Promise((done) => {
          const now = JSON.stringify([mark, where, selection]);
          const same = !mark || now === before;
          const told = same ? window.dash_clientside.no_update : now;
          requestAnimationFrame(() => setTimeout(() => done(told), 60));
        })""",
        Output("late", "data"),
        Input("scatter", "figure"),
        State("mark", "data"),
        State("where", "data"),
        State("selection", "data"),
        State("late", "data"),
    )
    clientside_callback(
        """(late, before) => {
          const mark = late ? JSON.parse(late)[0] : null;
          return !mark || mark === before ? window.dash_clientside.no_update : mark;
        }""",
        Output("late-mark", "data"),
        Input("late", "data"),
        State("late-mark", "data"),
    )


def serve(url: str, host: str, port: int, say: Callable[[str], None]) -> None:
    """Serve until Ctrl-C. Raises DseError when the database cannot be read or the port is taken."""
    library = Library(url)
    studies = library.summaries()
    token = "" if host in LOOPBACK else secrets.token_urlsafe(16)
    app = make_app(library, host=host, token=token)
    server = start(app, host, port)
    shown = f"[{host}]" if ":" in host else host
    say(
        f"{len(studies)} {'study' if len(studies) == 1 else 'studies'} of {library.shown_name}: http://{shown}:{server.port}/"
        + (f"?token={token}" if token else "")
    )
    if token:
        say("Others on the network can reach this page; it opens only with the token above.")
    say("Ctrl-C ends it.")
    threading.Thread(target=_warm, args=(library,), daemon=True).start()
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        server.shutdown()


def _warm(library: Library) -> None:
    """Read the newest study before anybody asks; what is wrong with it, the page will say."""
    with suppress(DseError):
        library.joined(library.overviews(library.known([])))


def start(app: Dash, host: str, port: int) -> BaseWSGIServer:
    """A server with a thread a request; any free port when `port` is 0."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.create_server((host, port), family=family)
        return make_server(host, port, app.server, threaded=True, fd=listening.detach())
    except OSError as error:
        raise StudyError(
            f"cannot listen on {host} port {port}; choose another with --port, or 0 for any"
        ) from error
