"""What must pass: ``nox`` runs lint, typing, all tests with faults, and some kills."""

import nox

nox.options.default_venv_backend = "uv|virtualenv"
nox.options.sessions = ["lint", "typing", "tests"]
nox.options.error_on_external_run = True

PROJECT = nox.project.load_toml("pyproject.toml")
GROUPS = PROJECT["dependency-groups"]
# A test never asks what time it takes, so that several may run at once.
AT_ONCE = ["-n", "auto", "--maxprocesses", "4", "--dist", "worksteal"]
FAULTS = ["tests/test_faults.py", "tests/test_cancellation.py"]
SOME_FAULTS = ["--rounds", "2"]


@nox.session
def lint(session: nox.Session) -> None:
    """Style of every file."""
    session.install(*GROUPS["lint"])
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")


@nox.session
def typing(session: nox.Session) -> None:
    """Types of the package, and of how users may write."""
    session.install(".", *GROUPS["typing"])
    session.run("mypy", "--strict", "asyncfetch")
    session.run("mypy", "--strict", "tests/typing")


@nox.session
def tests(session: nox.Session) -> None:
    """All tests, against the installed package; then what ``crash`` does.

    In one environment: making another takes a minute.
    """
    session.install(".", *GROUPS["test"])
    session.run("pytest", *AT_ONCE, *(session.posargs or SOME_FAULTS))
    if not session.posargs:
        session.run("python", "-m", "tests._kills", "--kills", "12")


@nox.session
def faults(session: nox.Session) -> None:
    """Faults from two seeds; ``-- --seed 7 --rounds 20 --every-step`` for more."""
    session.install(".", *GROUPS["test"])
    session.run("pytest", *AT_ONCE, *FAULTS, *(session.posargs or SOME_FAULTS))


@nox.session
def crash(session: nox.Session) -> None:
    """Kills at random instants: a few minutes; ``-- --kills 300 --seed N`` the rest."""
    session.install(".", *GROUPS["test"])
    session.run("python", "-m", "tests._kills", *session.posargs)


@nox.session
def soak(session: nox.Session) -> None:
    """A million small items: memory, open files, going on; ``-- --items N`` for less.

    With ``--kills N`` it is killed N times, and says what going on costs.
    """
    session.install(".", *GROUPS["test"])
    session.run("python", "-m", "tests._soak", *session.posargs)


@nox.session
def minimums(session: nox.Session) -> None:
    """All tests with the lowest versions that pyproject allows."""
    lowest = [one.replace(">=", "==") for one in PROJECT["project"]["dependencies"]]
    session.install(".", *lowest, *GROUPS["test"])
    # The plugin of the lowest anyio uses a name that today's pytest is about to drop.
    old = "ignore::pytest.PytestRemovedIn10Warning"
    session.run("pytest", "-W", old, *AT_ONCE, *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """The benchmarks, whole; each prints its ratios."""
    session.install(".", *GROUPS["test"])
    for name in ("bench_events", "bench_swc"):
        session.run("python", "-m", f"benchmarks.{name}", *session.posargs)


@nox.session
def build(session: nox.Session) -> None:
    """Wheel and source archive, and the tests against the built wheel."""
    session.install("build", *GROUPS["test"])
    out = session.create_tmp()
    session.run("python", "-m", "build", "--outdir", out)
    session.install("--find-links", out, "--no-index", "--no-deps", "asyncfetch")
    session.install(*PROJECT["project"]["dependencies"])
    session.run("pytest", *session.posargs)
