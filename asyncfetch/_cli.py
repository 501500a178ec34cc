"""The command line: words in, rows or a dataset out, and one line when it goes wrong.

The only module that prints. Data go to standard output, everything else to standard
error. Nothing heavy is imported before a command needs it.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from asyncfetch.errors import (
    AsyncfetchError,
    ConfigurationError,
    DatasetError,
    ItemError,
    NotFound,
)

if TYPE_CHECKING:
    import anyio
    import pyarrow as pa

    from asyncfetch._engine import Plan
    from asyncfetch._estimate import Estimate
    from asyncfetch._model import Event, Limits, Planned, Report
    from asyncfetch._objects import Destination
    from asyncfetch._verify import Problem
    from asyncfetch.services._table import Client, Description, Filter, Table

OK, FAILED_ITEMS, USAGE, CANNOT_GO_ON, INTERRUPTED = 0, 1, 2, 3, 130
DRAIN_SECONDS = 30.0
MOST_DRAWN = 16  # traces in one picture: more would be too small to see
ROWS_SHOWN = 20  # by `show --format table` without --limit

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Neuroscience web APIs as Parquet datasets.",
    context_settings={"help_option_names": ["-h", "--help"]},
)

bucket_app = typer.Typer(no_args_is_help=True, help="Buckets for datasets.")
app.add_typer(bucket_app, name="bucket")

TableName = Annotated[str, typer.Argument(metavar="SERVICE/TABLE")]
Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[NAME=VALUE ...]",
        help="Filters. NAME=@FILE reads one value a line, NAME:=JSON takes JSON.",
    ),
]
# Text, not Path: that would make a directory s3: of a bucket.
Dest = Annotated[
    str,
    typer.Argument(
        metavar="DEST", help="A dataset's directory, or s3://bucket/prefix (gs, az)."
    ),
]
Output = Annotated[
    str,
    typer.Option(
        "-o",
        "--output",
        metavar="DEST",
        help="The dataset's directory, or s3://bucket/prefix (gs, az).",
    ),
]
EndpointUrl = Annotated[
    str | None,
    typer.Option(
        "--endpoint-url", metavar="URL", help="Of s3:// (gs, az): where the service is."
    ),
]
Anonymous = Annotated[
    bool,
    typer.Option("--anonymous", help="Of s3:// (gs, az): ask without keys."),
]
BaseUrl = Annotated[
    str | None,
    typer.Option("--base-url", metavar="URL", help="Where the service is."),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress, no summary.")]
AsJson = Annotated[bool, typer.Option("--json", help="The outcome as JSON on stdout.")]
Debug = Annotated[
    bool, typer.Option("--debug", help="Log requests; show tracebacks of errors.")
]
Rate = Annotated[
    float | None,
    typer.Option("--rate", metavar="N", help="Requests per second at most."),
]
Concurrency = Annotated[
    int | None, typer.Option("--concurrency", metavar="N", help="Connections at most.")
]
Contact = Annotated[
    str | None,
    typer.Option("--contact", help="Your mail address, for the service's operators."),
]
Records = Annotated[
    str | None,
    typer.Option(
        "--records",
        metavar="PATH",
        help="Of a URL: where its records are: results, hits.hits; data.* for records "
        "under keys; '' for all of it.",
    ),
]
Paging = Annotated[
    str | None,
    typer.Option(
        "--paging",
        metavar="STYLE",
        help="Of a URL: offset, page, page0, next, cursor, keyset, link, range, hal, "
        "none. [default: what the first page shows]",
    ),
]
Key = Annotated[
    str | None,
    typer.Option("--key", metavar="FIELD", help="Of a URL: a field that is unique."),
]
Columns = Annotated[
    str | None,
    typer.Option(
        "--schema",
        metavar="NAME=TYPE,...",
        help="Of a URL: its columns, of bool, int64, float64, string, date, timestamp "
        "or json; @FILE has one a line. [default: what the first page has]",
    ),
]
BearerEnv = Annotated[
    str | None,
    typer.Option(
        "--bearer-env",
        metavar="NAME",
        help="Of a URL: the environment variable that holds its token.",
    ),
]
Drain = Annotated[
    float,
    typer.Option(
        "--drain-seconds", min=0, metavar="N", help="How long Ctrl-C lets requests end."
    ),
]
CommitSeconds = Annotated[
    float,
    typer.Option(
        "--commit-seconds", min=0, metavar="N", help="Commit at least this often."
    ),
]


def main() -> NoReturn:
    """Run the command line and exit with its status."""
    # Before anything imports pyarrow. Its own allocators keep 20 to 40 MB for later.
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command; return its exit status."""
    debug = "--debug" in arguments
    if debug:
        logging.basicConfig(level=logging.DEBUG, format="%(asctime)s %(message)s")
    command = typer.main.get_command(app)
    try:
        "".join(arguments).encode()
        # Not command(…): that turns a closed pipe into a failure.
        with command.make_context("asyncfetch", list(arguments)) as context:
            status = command.invoke(context)
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit):  # rich exits when the pipe is closed
        # The reader of our output has enough; Python would complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except KeyboardInterrupt:
        return INTERRUPTED
    except typer.Exit as end:
        return int(end.exit_code)
    except Exception as error:  # noqa: BLE001 - said in a line, and by status
        if debug:
            traceback.print_exc()
        return _say(error)
    return int(status or OK)


class _Said(logging.Handler):
    """Prints as everything else is: by what standard error is at that moment."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)


@contextmanager
def _guesses_said(*, is_wanted: bool) -> Iterator[None]:
    """Let the user see how a list was read that nobody described."""
    logger, said = logging.getLogger("asyncfetch.guesses"), _Said()
    if is_wanted:
        logger.setLevel(logging.INFO)
        logger.addHandler(said)
    try:
        yield
    finally:
        logger.removeHandler(said)


def _say(error: Exception) -> int:
    """One line for an error, and the exit status that goes with it."""
    if isinstance(error, ItemError) and error.cause is not None:
        error = error.cause
    if isinstance(error, UnicodeEncodeError | UnicodeDecodeError):
        _note(f"expected text in UTF-8, got {ascii(error.object)[:80]}")
        return USAGE
    if hasattr(error, "format_message"):  # a usage error of the parser
        text = error.format_message()
        if "\n" in text:  # no words at all: the help itself
            print(text)
        else:
            _note(f"{text} (see asyncfetch --help)")
        return USAGE
    if not isinstance(error, AsyncfetchError | OSError):
        _note(f"a mistake in asyncfetch, please report it: {error!r} (see --debug)")
        return CANNOT_GO_ON
    _note(str(error))
    wrong_usage = isinstance(error, ConfigurationError | NotFound) or (
        isinstance(error, DatasetError) and getattr(error, "is_usage", False)
    )
    return USAGE if wrong_usage else CANNOT_GO_ON


def _note(text: str) -> None:
    print(f"asyncfetch: {' '.join(text.split())}", file=sys.stderr)


def _say_version(is_asked: bool) -> None:
    if is_asked:
        from asyncfetch import __version__  # noqa: PLC0415

        print(f"asyncfetch {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    *,
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_say_version, help="Show the version."
        ),
    ] = False,
) -> None:
    """Take what stands before the command."""


# --- finding tables, reading words ----------------------------------------------------


def _open(name: str, base_url: str | None, **options: Any) -> tuple[Client, str]:
    """The client of ``service/table``, and the table's name."""
    from asyncfetch.services import client_class  # noqa: PLC0415

    service, _, table = name.partition("/")
    if not table:
        client_class(service)  # a service that is not there is the nearer mistake
        raise ConfigurationError(
            f"expected SERVICE/TABLE, got {name!r}: see asyncfetch services"
        )
    if base_url is not None:
        options["base_url"] = base_url
    client = client_class(service).from_env(limits=_limits(options), **options)
    client.table(table)
    return client, table


def _limits(options: dict[str, Any]) -> Limits:
    """What was said of them, taken out of the *options*."""
    from asyncfetch._model import Limits  # noqa: PLC0415

    return Limits(
        rate=options.pop("rate", None), concurrency=options.pop("concurrency", None)
    )


def _open_table(
    name: str, base_url: str | None, about: Mapping[str, str | None], **options: Any
) -> tuple[Client, Table]:
    """Client and table of ``service/table``, or of a URL of any REST API.

    Parameters
    ----------
    about
        What can be said of a URL: the options of :meth:`asyncfetch.Rest.table`.
    """
    if not _is_url(name):
        for option, value in about.items():
            if value is not None:
                raise ConfigurationError(
                    f"expected a URL for --{option.replace('_', '-')}, got {name}"
                )
        client, name = _open(name, base_url, **options)
        return client, client.table(name)
    from urllib.parse import urlsplit  # noqa: PLC0415

    parts = urlsplit(name if "://" in name else f"//{name}")
    scheme = f"{parts.scheme}://" if parts.scheme else ""
    there = parts._replace(scheme="", netloc="", fragment="").geturl()
    return _open_rest(there, base_url or f"{scheme}{parts.netloc}", about, **options)


def _is_url(name: str) -> bool:
    """Whether a name is no service's: it has a scheme, or begins with a host."""
    return "://" in name or not set(".:").isdisjoint(name.partition("/")[0])


def _open_rest(
    name: str, base_url: str, about: Mapping[str, str | None], **options: Any
) -> tuple[Client, Table]:
    """A client for any REST API, and a list of it as a table."""
    from asyncfetch.services.rest import Bearer, Rest  # noqa: PLC0415

    limits = _limits(options)
    bearer_env = about.get("bearer_env")
    if bearer_env is not None:
        token = os.environ.get(bearer_env, "")
        if not token.strip():
            raise ConfigurationError(
                "expected a token in the environment variable that --bearer-env names, "
                f"got nothing in {bearer_env}"
            )
        options["auth"] = Bearer(token.strip())
    client = Rest(base_url, limits=limits, **options)
    schema = about.get("schema")
    if schema is not None and schema.startswith("@"):
        about = {**about, "schema": ",".join(_lines_of(schema, "--schema"))}
    return client, client.table(name, **about)


def filters_of(words: list[str] | None, description: Description) -> dict[str, Any]:
    """Filters from ``NAME=VALUE`` words, each typed by its filter.

    A NAME that comes again adds to its list.
    """
    if description.takes_any:
        return {"params": _parameters(words)}
    filters: dict[str, Any] = {}
    for word in words or ():
        name, sign, text = word.partition("=")
        if not sign:
            raise ConfigurationError(f"expected NAME=VALUE, got {word!r}")
        is_json = name.endswith(":")
        name = name.removesuffix(":").replace("-", "_")
        found = description.find(name)
        if found is None:
            description.check({name: text})  # says what there is
            raise AssertionError
        value = _value(text, is_json, found)
        if found.name not in filters:
            filters[found.name] = value
        elif found.many:
            filters[found.name] = [*filters[found.name], *_as_list(value)]
        else:
            raise ConfigurationError(f"{name} takes one value, and it is given twice")
    return filters


def _parameters(words: list[str] | None) -> list[tuple[str, Any]]:
    """Parameters of a query from ``NAME=VALUE`` words; a comma splits nothing."""
    from asyncfetch.services._table import Filter  # noqa: PLC0415

    pairs = []
    for word in words or ():
        name, sign, text = word.partition("=")
        is_json = name.endswith(":")
        name = name.removesuffix(":")
        if not sign or not name:
            raise ConfigurationError(f"expected NAME=VALUE, got {word!r}")
        given = text and _value(text, is_json, Filter(name=name, kind=str))
        value = json.dumps(given) if isinstance(given, dict) else given
        pairs.append((name, value))
    return pairs


def _value(text: str, is_json: bool, found: Filter) -> Any:
    if is_json:
        try:
            return json.loads(text)
        except ValueError as error:
            raise ConfigurationError(
                f"expected JSON for {found.name}, got {text!r}: {error}"
            ) from None
    if text.startswith("@"):
        return _lines_of(text, found.name)
    return found.parse(text)


def _lines_of(text: str, name: str) -> list[str]:
    """The lines of the file that ``@FILE`` names, without empty ones."""
    try:
        lines = Path(text[1:]).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigurationError(f"{name}={text}: {error.strerror}") from None
    return [line.strip() for line in lines if line.strip()]


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _word(value: Any) -> str:
    """A filter's value as a word of the command line has it."""
    if isinstance(value, dict):
        return ",".join(f"{name}={one}" for name, one in value.items())
    return ",".join(map(str, _as_list(value)))


def _in_loop(work: Callable[[], Any]) -> Any:
    """Run an async function in an event loop of its own, the fastest there is."""
    import gc  # noqa: PLC0415
    from importlib.util import find_spec  # noqa: PLC0415

    import anyio  # noqa: PLC0415

    gc.freeze()  # what is imported by now stays: not to be looked through again
    has_uvloop = find_spec("uvloop") is not None
    return anyio.run(work, backend_options={"use_uvloop": has_uvloop})


# --- looking --------------------------------------------------------------------------


@app.command()
def services() -> None:
    """List services, their tables, addresses and default limits."""
    from asyncfetch.services import SERVICES, client_class  # noqa: PLC0415

    for service in SERVICES:
        kind = client_class(service)
        limits = kind.default_limits
        pace = [
            f"{limits.rate:g} requests/s" if limits.rate else "",
            f"{limits.concurrency} connections" if limits.concurrency else "",
        ]
        print(f"{service}  {kind.default_url}")
        print(f"  at most {', '.join(filter(None, pace))}: {kind.limits_source}")
        for description in kind.descriptions:
            print(f"  {service}/{description.name:<18} {description.summary}")


@app.command()
def describe(
    name: Annotated[str, typer.Argument(metavar="SERVICE[/TABLE]")],
) -> None:
    """Show a table's filters, columns with units, and what an item is."""
    from asyncfetch.services import client_class  # noqa: PLC0415

    service, _, table = name.partition("/")
    kind = client_class(service)
    if not table:
        print(f"{service}  {kind.default_url}")
        for description in kind.descriptions:
            print(f"  {description.name:<18} {description.summary}")
        return
    client, table = _open(name, None)
    found = client.table(table).description
    print(f"{service}/{found.name}: {found.summary}")
    print(f"items: {found.item}")
    print("filters:")
    for one in found.filters:
        kind_name = f"{'list of ' if one.many else ''}{one.kind.__name__}"
        doc = one.doc + (f" (also {one.alias}=)" if one.alias else "")
        print(f"  {one.name:<24} {kind_name:<14} {doc}".rstrip())
    print("columns:")
    for field in found.schema:
        meta = {k.decode(): v.decode() for k, v in (field.metadata or {}).items()}
        words = ", ".join(filter(None, [meta.get("unit"), meta.get("doc")]))
        print(f"  {field.name:<24} {_type_name(field.type):<14} {words}".rstrip())


def _type_name(kind: pa.DataType) -> str:
    return "json" if "json" in str(kind) else str(kind)


@app.command()
def show(
    table: TableName,
    words: Words = None,
    *,
    limit: Annotated[int | None, typer.Option("--limit", help="Rows at most.")] = None,
    form: Annotated[
        str, typer.Option("--format", help="table, csv, json, jsonl or arrow.")
    ] = "table",
    columns: Annotated[
        str | None, typer.Option("--columns", help="Names, with commas between.")
    ] = None,
    base_url: BaseUrl = None,
    quiet: Quiet = False,  # noqa: ARG001 - taken by every command that asks a service
    as_json: AsJson = False,
    debug: Debug = False,  # noqa: ARG001 - read before the parser runs
    rate: Rate = None,
    concurrency: Concurrency = None,
    contact: Contact = None,
    records: Records = None,
    paging: Paging = None,
    key: Key = None,
    schema: Columns = None,
    bearer_env: BearerEnv = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE", help="Draw traces there instead."),
    ] = None,
) -> None:
    """Print rows (table format: 20 of them, unless --limit says otherwise)."""
    form = "arrow" if plot is not None else "json" if as_json else form
    if form not in WRITERS:
        raise ConfigurationError(
            f"expected --format {', '.join(WRITERS)}, got {form!r}"
        )
    if form == "table" and limit is None:
        limit = ROWS_SHOWN
    about = {
        "records": records,
        "paging": paging,
        "key": key,
        "schema": schema,
        "bearer_env": bearer_env,
    }
    client, found = _open_table(
        table, base_url, about, rate=rate, concurrency=concurrency, contact=contact
    )
    filters = filters_of(words, found.description)
    wanted = columns.split(",") if columns else None
    known = found.description.schema
    if not found.description.takes_any:
        _check_columns(table, wanted, known.names)

    async def get() -> Any:
        async with client:
            if form in {"json", "jsonl"}:
                return await found.get(limit=limit, **filters)
            return await found.get(output_type="arrow", limit=limit, **filters)

    if plot is not None:
        _check_drawable(table, known, limit)
    rows = _in_loop(get)
    if plot is not None:
        _draw(rows, plot)
        return
    if wanted and isinstance(rows, list):
        if found.description.takes_any and rows:
            _check_columns(
                table, wanted, dict.fromkeys(key for row in rows for key in row)
            )
        rows = [{key: row.get(key) for key in wanted} for row in rows]
    elif wanted:
        _check_columns(table, wanted, rows.schema.names)
        rows = rows.select(wanted)
    WRITERS[form](rows)


def _check_columns(
    table: str, wanted: list[str] | None, names: Collection[str]
) -> None:
    for column in wanted or ():
        if column not in names:
            raise ConfigurationError(
                f"{table} has no column {column!r}; it has {', '.join(names)}"
            )


def _check_drawable(table: str, schema: pa.Schema, limit: int | None) -> None:
    if not {"node_id", "parent_id", "radius"} <= set(schema.names):
        raise ConfigurationError(
            f"expected a table of traces for --plot, got {table}: neuromorpho/traces"
        )
    if limit is not None:  # it counts nodes
        raise ConfigurationError(
            "expected --plot without --limit, which would cut a trace: name the neurons"
        )
    from asyncfetch._plot import figure_class  # noqa: PLC0415

    figure_class()  # before anything is asked


def _draw(rows: pa.Table, path: Path) -> None:
    """Draw each trace among *rows*, which stand one after the other."""
    import pyarrow.compute as pc  # noqa: PLC0415

    from asyncfetch._plot import Drawing, draw  # noqa: PLC0415

    neurons = pc.value_counts(rows["neuron_id"])
    if len(neurons) > MOST_DRAWN:
        raise ConfigurationError(
            f"expected at most {MOST_DRAWN} traces in one picture, got {len(neurons)}: "
            "narrow the query, or add --limit"
        )
    drawings, first = [], 0
    for count in neurons.field("counts").to_pylist():
        own = rows.slice(first, count)
        first += count
        name, archive = own["neuron_name"][0].as_py(), own["archive"][0].as_py()
        drawings.append(Drawing(f"{name} ({archive})", own))
    try:
        draw(drawings).savefig(path)
    except ValueError as error:
        if isinstance(error, AsyncfetchError):
            raise
        raise ConfigurationError(f"{path}: {error}") from error
    print(f"{path}: {len(drawings)} traces, {rows.num_rows:,} nodes", file=sys.stderr)


def _write_table(rows: pa.Table) -> None:
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    drawn = Table(box=None, header_style="bold", pad_edge=False)
    for name in rows.schema.names:
        drawn.add_column(name, overflow="ellipsis", no_wrap=True)
    for row in rows.to_pylist():
        drawn.add_row(*("" if one is None else str(one) for one in row.values()))
    width = None if sys.stdout.isatty() else 100_000
    Console(width=width).print(drawn)


def _write_csv(rows: pa.Table) -> None:
    import csv  # noqa: PLC0415

    writer = csv.writer(sys.stdout)
    writer.writerow(rows.schema.names)
    for batch in rows.to_batches():
        for row in batch.to_pylist():
            writer.writerow(
                json.dumps(one) if isinstance(one, list) else one
                for one in row.values()
            )


def _write_arrow(rows: pa.Table) -> None:
    import pyarrow as pa  # noqa: PLC0415

    with pa.ipc.new_stream(sys.stdout.buffer, rows.schema) as out:
        out.write_table(rows)


def _write_json(rows: list[Any]) -> None:
    print(json.dumps(rows, indent=2, ensure_ascii=False, default=str))


def _write_jsonl(rows: list[Any]) -> None:
    for row in rows:
        print(json.dumps(row, ensure_ascii=False, default=str))


WRITERS: dict[str, Callable[[Any], None]] = {
    "table": _write_table,
    "csv": _write_csv,
    "json": _write_json,
    "jsonl": _write_jsonl,
    "arrow": _write_arrow,
}


# --- fetching -------------------------------------------------------------------------


@app.command()
def fetch(
    table: TableName,
    words: Words = None,
    *,
    output: Output,
    files: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Keep the files themselves there; _files is in the dataset.",
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", help="Items at most.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be asked, and stop.")
    ] = False,
    sample: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="With --dry-run: measure N items, for the bytes. [default: a few]",
        ),
    ] = None,
    rate: Rate = None,
    concurrency: Concurrency = None,
    contact: Contact = None,
    base_url: BaseUrl = None,
    records: Records = None,
    paging: Paging = None,
    key: Key = None,
    schema: Columns = None,
    bearer_env: BearerEnv = None,
    endpoint_url: EndpointUrl = None,
    anonymous: Anonymous = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
    debug: Debug = False,  # noqa: ARG001 - read before the parser runs
    drain_seconds: Drain = DRAIN_SECONDS,
    commit_seconds: CommitSeconds = 30.0,
) -> int:
    """Fetch rows into a dataset; go on where an earlier run stopped."""
    about = {
        "records": records,
        "paging": paging,
        "key": key,
        "schema": schema,
        "bearer_env": bearer_env,
    }
    client, found = _open_table(
        table, base_url, about, rate=rate, concurrency=concurrency, contact=contact
    )
    plan = found.plan(limit=limit, **filters_of(words, found.description))
    dest = _place(output, endpoint_url, anonymous=anonymous)
    if dry_run:
        return _dry_run(client, plan, dest, sample, as_json=as_json)
    return _download(
        client,
        plan,
        dest,
        files=files,
        quiet=quiet,
        as_json=as_json,
        drain_seconds=drain_seconds,
        commit_seconds=commit_seconds,
    )


@app.command()
def mirror(
    service: Annotated[str, typer.Argument(metavar="SERVICE", help="neuromorpho.")],
    words: Words = None,
    *,
    output: Output,
    files: Annotated[
        str,
        typer.Option(
            metavar="DIR", help="Where the files themselves go; _files is in traces/."
        ),
    ] = "_files",
    rate: Rate = None,
    concurrency: Concurrency = None,
    contact: Contact = None,
    base_url: BaseUrl = None,
    endpoint_url: EndpointUrl = None,
    anonymous: Anonymous = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
    debug: Debug = False,  # noqa: ARG001 - read before the parser runs
    drain_seconds: Drain = DRAIN_SECONDS,
    commit_seconds: CommitSeconds = 30.0,
) -> int:
    """Fetch neurons, their traces and files in one pass; go on where it stopped."""
    from asyncfetch import _mirror  # noqa: PLC0415
    from asyncfetch._objects import below  # noqa: PLC0415

    if service != "neuromorpho":
        raise ConfigurationError(f"expected neuromorpho to mirror, got {service!r}")
    client, name = _open(
        f"{service}/traces",
        base_url,
        rate=rate,
        concurrency=concurrency,
        contact=contact,
    )
    filters = filters_of(words, client.table(name).description)
    root = _place(output, endpoint_url, anonymous=anonymous)

    def run(plan: Plan, table: str, files: str | None) -> int:
        return _download(
            client,
            plan,
            below(root, table),
            files=files,
            quiet=quiet,
            as_json=as_json,
            drain_seconds=drain_seconds,
            commit_seconds=commit_seconds,
        )

    status = run(_mirror.neurons_plan(client, filters), "neurons", None)
    if status == INTERRUPTED or not _mirror.is_readable(root):
        return status
    second = run(_mirror.traces_plan(client, filters, root), "traces", files)
    _mirror.leave_citation(root)
    return max(status, second)


@app.command()
def cite(
    dest: Dest,
    *,
    form: Annotated[str, typer.Option("--format", help="md, bibtex or csl.")] = "md",
    endpoint_url: EndpointUrl = None,
    anonymous: Anonymous = False,
    debug: Debug = False,  # noqa: ARG001 - read before the parser runs
) -> None:
    """Print what is to be cited by those who use what DEST holds."""
    from asyncfetch import _mirror  # noqa: PLC0415

    place = _place(dest, endpoint_url, anonymous=anonymous)
    print(_mirror.citation(place, form), end="")


@app.command()
def resume(
    dest: Dest,
    *,
    rate: Rate = None,
    concurrency: Concurrency = None,
    contact: Contact = None,
    base_url: BaseUrl = None,
    bearer_env: BearerEnv = None,
    endpoint_url: EndpointUrl = None,
    anonymous: Anonymous = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
    debug: Debug = False,  # noqa: ARG001 - read before the parser runs
    drain_seconds: Drain = DRAIN_SECONDS,
    commit_seconds: CommitSeconds = 30.0,
) -> int:
    """Go on with the plan that DEST holds."""
    place = _place(dest, endpoint_url, anonymous=anonymous)
    client, plan = _held_plan(
        place,
        base_url,
        bearer_env,
        rate=rate,
        concurrency=concurrency,
        contact=contact,
    )
    return _download(
        client,
        plan,
        place,
        quiet=quiet,
        as_json=as_json,
        drain_seconds=drain_seconds,
        commit_seconds=commit_seconds,
    )


@app.command()
def retry(
    dest: Dest,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME=VALUE ...]",
            help="Columns of the items, such as outcome=missing or http_status=502.",
        ),
    ] = None,
    *,
    rate: Rate = None,
    concurrency: Concurrency = None,
    contact: Contact = None,
    base_url: BaseUrl = None,
    bearer_env: BearerEnv = None,
    endpoint_url: EndpointUrl = None,
    anonymous: Anonymous = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
    debug: Debug = False,  # noqa: ARG001 - read before the parser runs
    drain_seconds: Drain = DRAIN_SECONDS,
    commit_seconds: CommitSeconds = 30.0,
) -> int:
    """Ask again for items that failed, or for those that the words select."""
    place = _place(dest, endpoint_url, anonymous=anonymous)
    client, plan = _held_plan(
        place,
        base_url,
        bearer_env,
        rate=rate,
        concurrency=concurrency,
        contact=contact,
    )
    return _download(
        client,
        plan,
        place,
        quiet=quiet,
        as_json=as_json,
        drain_seconds=drain_seconds,
        commit_seconds=commit_seconds,
        only=_selected(place, words),
    )


def _held_plan(
    dest: Destination, base_url: str | None, bearer_env: str | None, **options: Any
) -> tuple[Client, Plan]:
    """The plan in a dataset, and a client for it."""
    from asyncfetch._dataset import open_dataset  # noqa: PLC0415

    record = open_dataset(dest).plan
    if record.service == "rest":
        known = (record.notes or {}).get("bearer_env")
        about = {
            "bearer_env": bearer_env or (known if isinstance(known, str) else None)
        }
        client, table = _open_rest(
            f"/{record.table}", base_url or record.base_url, about, **options
        )
        return client, table.plan(limit=record.limit, **record.filters)
    client, name = _open(
        f"{record.service}/{record.table}", base_url or record.base_url, **options
    )
    return client, client.table(name).plan(limit=record.limit, **record.filters)


def _selected(dest: Destination, words: list[str] | None) -> frozenset[int]:
    """Ordinals of the failed or missing items that the words select."""
    import pyarrow.dataset as pads  # noqa: PLC0415

    from asyncfetch._dataset import open_dataset  # noqa: PLC0415

    items = open_dataset(dest).items_unread
    wanted: dict[str, set[str]] = {}
    for word in words or ["outcome=failed"]:
        name, sign, text = word.partition("=")
        if not sign or name not in items.schema.names:
            raise ConfigurationError(
                f"expected NAME=VALUE with a column of the items, got {word!r}; "
                f"columns: {', '.join(items.schema.names)}"
            )
        wanted.setdefault(name, set()).update(text.split(","))
    outcomes = wanted.pop("outcome", None)
    chosen: set[int] = set()
    for batch in items.to_batches(
        columns=list({"ordinal": 0, "outcome": 0, **dict.fromkeys(wanted)}),
        filter=outcomes and pads.field("outcome").isin(sorted(outcomes)),
    ):
        for row in batch.to_pylist():
            if all(_matches(row[name], texts) for name, texts in wanted.items()):
                if row["outcome"] not in {"failed", "missing"}:
                    raise ConfigurationError(
                        "the words select items that are there already; add "
                        "outcome=failed or outcome=missing"
                    )
                chosen.add(row["ordinal"])
    return frozenset(chosen)


def _matches(value: Any, texts: set[str]) -> bool:
    if isinstance(value, list):
        return bool({str(one) for one in value} & texts)
    return str(value) in texts


def _place(dest: str, endpoint_url: str | None, *, anonymous: bool) -> Destination:
    """Where a dataset is, by what the command line says."""
    if "://" not in dest:
        for option, is_said in (
            ("--endpoint-url", endpoint_url is not None),
            ("--anonymous", anonymous),
        ):
            if is_said:
                raise ConfigurationError(
                    f"expected s3://bucket/prefix with {option}, got {dest!r}"
                )
        return dest
    from asyncfetch._objects import ObjectStore  # noqa: PLC0415

    return ObjectStore(dest, endpoint_url=endpoint_url, anonymous=anonymous)


def _download(
    client: Client,
    plan: Plan,
    dest: Destination,
    *,
    quiet: bool,
    as_json: bool,
    drain_seconds: float,
    commit_seconds: float,
    files: str | None = None,
    only: frozenset[int] | None = None,
) -> int:
    import anyio  # noqa: PLC0415

    from asyncfetch._engine import download  # noqa: PLC0415
    from asyncfetch._model import Planned  # noqa: PLC0415

    if not quiet:  # here, because the download would load it inside the event loop
        import asyncfetch._progress  # noqa: F401, PLC0415

    interrupted = False
    first_line = _FirstLine(
        plan.name, client.table(plan.table).description.item, Planned
    )

    async def listen(stop: anyio.Event, scope: anyio.CancelScope) -> None:
        nonlocal interrupted
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async for _ in signals:
                if interrupted:
                    scope.cancel()
                    return
                interrupted = True
                stop.set()
                _note(
                    f"finishing what is in flight (at most {drain_seconds:g} s); "
                    "once more stops at once"
                )

    async def work() -> Report | None:
        report = None
        async with client, anyio.create_task_group() as group:
            stop = anyio.Event()
            group.start_soon(listen, stop, group.cancel_scope)
            report = await download(
                plan,
                dest,
                progress=not quiet,
                observe=None if quiet else first_line,
                stop=stop,
                drain_seconds=drain_seconds,
                commit_seconds=commit_seconds,
                files=files,
                only=only,
            )
            group.cancel_scope.cancel()
        return report

    with _single_error(), _guesses_said(is_wanted=not quiet):
        report = _in_loop(work)
    if report is None:
        return INTERRUPTED
    _summarize(plan, dest, report, quiet=quiet, as_json=as_json)
    if interrupted and (report.pending or not report.plan_complete):
        return INTERRUPTED
    failed = bool(report.items.get("failed")) or report.shortfall is not None
    return FAILED_ITEMS if failed else OK


class _FirstLine:
    """Says once what an item is, and how many there are."""

    def __init__(self, name: str, item: str, planned: type[Planned]) -> None:
        self._name = name
        self._item = item
        self._is_said = False
        self._planned = planned

    def __call__(self, event: Event, /) -> None:
        if self._is_said or not isinstance(event, self._planned) or not event.items:
            return
        self._is_said = True
        known = f"{event.items:,}" if event.complete else f"{event.items:,} and more"
        there = f", {event.ended:,} of them there" if event.ended else ""
        print(f"{self._name}: {known} {self._item}{there}", file=sys.stderr)


@contextmanager
def _single_error() -> Iterator[None]:
    """The task group around a download holds one error at most: let it out."""
    try:
        yield
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        raise error from error.__cause__


def _summarize(
    plan: Plan, dest: Destination, report: Report, *, quiet: bool, as_json: bool
) -> None:
    if as_json:
        print(json.dumps(asdict(report)))
    if quiet:
        return
    counts = ", ".join(f"{n:,} {outcome}" for outcome, n in report.items.items() if n)
    if not report.requests and report.plan_complete and not report.pending:
        print(
            f"{dest}: nothing left to ask: {counts or 'no items'}, "
            f"{report.rows:,} rows",
            file=sys.stderr,
        )
    else:
        print(
            f"{dest}: {counts or 'no items'}; {report.rows:,} rows in "
            f"{report.parts:,} parts; {report.requests:,} requests "
            f"({report.retries:,} retries), {report.bytes / 1e6:,.1f} MB "
            f"in {report.seconds:,.1f} s",
            file=sys.stderr,
        )
    if report.pending or not report.plan_complete:
        left = f"{report.pending:,} items" if report.plan_complete else "items"
        _note(f"{left} are left: asyncfetch resume {dest}")
    for one in report.failed[:3]:
        _note(f"failed: {one.key}: {one.error_class}: {one.error}")
    if report.items.get("failed"):
        _note(f"see asyncfetch status {dest} --failed, then asyncfetch retry {dest}")
    if report.unparsed:
        counted = ", ".join(f"{n:,} of {name}" for name, n in report.unparsed.items())
        _note(f"values that do not fit their columns, kept in extra: {counted}")
    if report.shortfall is not None:
        _note(f"{plan.name} is not complete: {report.shortfall}")


def _dry_run(
    client: Client, plan: Plan, dest: Destination, sample: int | None, *, as_json: bool
) -> int:
    from asyncfetch._estimate import estimate  # noqa: PLC0415
    from asyncfetch._progress import duration  # noqa: PLC0415

    description = client.table(plan.table).description

    async def work() -> Estimate:
        async with client:
            return await estimate(plan, dest, description.item_bytes, sample=sample)

    found: Estimate = _in_loop(work)
    if as_json:
        print(json.dumps(asdict(found)))
        return OK
    more = " and more" if found.is_open else ""
    print(f"{plan.name}: {found.items:,}{more} {description.item}")
    print(f"already there: {found.already_there:,} items")
    least = "at least " if found.is_open else ""
    print(
        f"requests: {least}{found.requests:,}; about {found.bytes / 1e6:,.1f} MB "
        f"as sent, going by {found.bytes_basis}"
    )
    pace = [f"at {found.rate:g} requests/s"] if found.rate else ["without a rate limit"]
    pace.append(f"{found.concurrency} connections")
    how = "at least" if found.is_least else "about"
    print(f"{how} {duration(found.seconds_at_polite_rate)} {', '.join(pace)}")
    return OK


# --- datasets -------------------------------------------------------------------------


@app.command()
def status(
    dest: Dest,
    *,
    failed: Annotated[bool, typer.Option("--failed", help="List them.")] = False,
    endpoint_url: EndpointUrl = None,
    anonymous: Anonymous = False,
    as_json: AsJson = False,
    debug: Debug = False,  # noqa: ARG001 - read before the parser runs
) -> None:
    """Show items and rows by outcome, what failed and why."""
    from asyncfetch._dataset import open_dataset  # noqa: PLC0415

    view = open_dataset(_place(dest, endpoint_url, anonymous=anonymous))
    state = view.state()
    lines = view.failed(1_000_000 if failed else 3)
    if as_json:
        facts = {"plan": json.loads(view.plan.to_json()), **asdict(state)}
        print(json.dumps({**facts, "failed": [asdict(one) for one in lines]}))
        return
    plan = view.plan
    words = " ".join(f"{name}={_word(value)}" for name, value in plan.filters.items())
    print(f"{plan.service}/{plan.table} {words}".rstrip())
    print(f"from {plan.base_url}")
    if plan.notes is not None:
        where = plan.notes.get("records") or "the answer itself"
        print(f"records: {where}; pages: {plan.notes.get('paging')}")
    known = "" if state.plan_complete else " so far; the plan is not complete"
    print(f"items: {state.planned:,}{known}")
    for outcome, count in state.items.items():
        print(f"  {outcome:<10} {count:,}")
    if state.pending:
        print(f"  {'pending':<10} {state.pending:,}")
    print(f"rows: {state.rows:,} in {state.parts:,} parts, {state.bytes / 1e6:,.1f} MB")
    if plan.files is not None:
        size = f"{state.files:,}, {state.file_bytes / 1e6:,.1f} MB"
        print(f"files: {size} in {plan.files}")
    for one in lines:
        print(f"failed: {one.key}: {one.error_class}: {one.error} ({one.url})")
    hidden = state.items.get("failed", 0) - len(lines)
    if hidden > 0:
        print(f"failed: {hidden:,} more, see --failed")


@app.command()
def verify(
    dest: Dest,
    *,
    repair: Annotated[
        bool, typer.Option("--repair", help="Remove what cannot be trusted.")
    ] = False,
    endpoint_url: EndpointUrl = None,
    anonymous: Anonymous = False,
    as_json: AsJson = False,
    debug: Debug = False,  # noqa: ARG001 - read before the parser runs
) -> int:
    """Prove that rows, items and parts agree."""
    from asyncfetch._dataset import open_dataset  # noqa: PLC0415
    from asyncfetch._verify import verify as prove  # noqa: PLC0415

    notes: list[Problem] = []
    place = _place(dest, endpoint_url, anonymous=anonymous)
    problems = prove(place, repair=repair, note=notes.append)
    if as_json:
        print(json.dumps([asdict(one) for one in problems]))
    for one in notes:
        _note(f"note: {one.where}: {one.code}: {one.text}")
    if as_json:
        return FAILED_ITEMS if problems else OK
    for one in problems:
        print(f"{one.where}: {one.code}: {one.text}")
    if not problems:
        state = open_dataset(place).state()
        files = f" and {state.files:,} files" if state.files else ""
        print(
            f"{dest}: {state.rows:,} rows of {sum(state.items.values()):,} items "
            f"in {state.parts:,} parts{files} agree"
        )
    elif repair:
        _note(f"removed what cannot be trusted; asyncfetch resume {dest} fetches it")
    else:
        _note(f"{len(problems)} problems; see asyncfetch verify --repair")
    return FAILED_ITEMS if problems else OK


@app.command()
def compact(
    dest: Dest,
    *,
    endpoint_url: EndpointUrl = None,
    anonymous: Anonymous = False,
    as_json: AsJson = False,
    debug: Debug = False,  # noqa: ARG001 - read before the parser runs
) -> None:
    """Merge small parts."""
    from asyncfetch._compact import compact as merge  # noqa: PLC0415

    done = merge(_place(dest, endpoint_url, anonymous=anonymous))
    if as_json:
        print(json.dumps(asdict(done)))
    elif not done.merged:
        print(f"{dest}: nothing to merge: {done.rows:,} rows in {done.parts:,} parts")
    else:
        print(
            f"{dest}: {done.rows:,} rows in {done.parts:,} parts, "
            f"{done.bytes / 1e6:,.1f} MB; there were {done.parts_before:,} parts, "
            f"{done.bytes_before / 1e6:,.1f} MB"
        )


@bucket_app.command("create")
def create_bucket(
    name: Annotated[str, typer.Argument(metavar="s3://NAME")],
    *,
    endpoint_url: EndpointUrl = None,
    region: Annotated[
        str | None, typer.Option("--region", help="Where it is to be.")
    ] = None,
    debug: Debug = False,  # noqa: ARG001 - read before the parser runs
) -> None:
    """Make a bucket, unless it is there."""
    from asyncfetch._objects import ObjectStore  # noqa: PLC0415
    from asyncfetch._objects import create_bucket as make  # noqa: PLC0415

    make(ObjectStore(name, endpoint_url=endpoint_url, region=region))
    print(name)


# --- the embedded archive -------------------------------------------------------------


@app.command()
def simulate(
    *,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="0 lets the system choose.")
    ] = 0,
    seed: Annotated[int, typer.Option(help="What all data depend on.")] = 0,
    scale: Annotated[
        float, typer.Option(min=0, max=1000, help="1 is 1 000 neurons.")
    ] = 1.0,
    latency: Annotated[
        float, typer.Option(min=0, max=600, help="Seconds before each answer.")
    ] = 0.0,
    faults: Annotated[
        str, typer.Option(metavar="SPEC", help="Such as error=0.02,reset=0.01,seed=7.")
    ] = "",
    log: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Requests as JSON lines.")
    ] = None,
    debug: Debug = False,  # noqa: ARG001 - read before the parser runs
) -> None:
    """Run the embedded archive until Ctrl-C."""
    from asyncfetch import testing  # noqa: PLC0415

    def ready(archive: testing.Archive) -> None:
        for name, url in archive.environment().items():
            print(f"export {name}={url}", flush=True)

    _in_loop(
        lambda: testing.run(
            port=port,
            seed=seed,
            scale=scale,
            latency=latency,
            faults=faults,
            log=log,
            on_ready=ready,
        )
    )


@app.command()
def demo(
    dest: Annotated[Path, typer.Argument(metavar="[DEST]")] = Path("demo-data"),
    *,
    debug: Debug = False,  # noqa: ARG001 - read before the parser runs
) -> None:
    """Two downloads from the embedded archive, one killed and resumed on the way."""
    from asyncfetch import _demo  # noqa: PLC0415

    for line in _demo.steps(dest):
        print(line, flush=True)
