"""Neuroscout's login: a token when one is needed, another before it expires."""

import anyio
import pytest

import asyncfetch
from asyncfetch._auth import Reply, TokenLogin, lifetime
from asyncfetch.services._calls import login, needs_user
from asyncfetch.testing._neuroscout_users import ACCOUNTS, PASSWORD, _signed

pytestmark = pytest.mark.anyio


@pytest.fixture
async def api(archive):
    async with asyncfetch.Neuroscout(
        *archive.account, base_url=archive.neuroscout
    ) as api:
        yield api


def logins(archive):
    return [one.target for one in archive.log].count("/neuroscout/api/auth")


async def test_the_token_is_got_when_first_needed_and_not_before(archive, api):
    await api.datasets.get()
    assert logins(archive) == 0
    profile = await api.user.get()
    assert profile["user_name"] == "example_user"
    await api.user.get_predictors()
    assert logins(archive) == 1


async def test_an_expired_token_is_renewed_once_for_all_tasks(archive, api):
    await api.user.get()
    archive.pass_time(8 * 86400)
    async with anyio.create_task_group() as group:
        for _ in range(8):
            group.start_soon(api.user.get_analyses)
    assert logins(archive) == 2
    assert [one.status for one in archive.log].count(200) >= 10


async def test_a_table_of_the_user_has_the_three_forms(api):
    frame = await api.user.get(output_type="df")
    assert frame["email"].to_list() == ["user@example.com"]
    assert (await api.user.get(output_type="arrow")).num_rows == 1


async def test_own_predictors_and_analyses_are_there(archive, api):
    names = {one["name"] for one in await api.user.get_predictors()}
    assert names == {"my_ratings", "concreteness"}
    (one,) = await api.user.get_predictors(name=["my_ratings"])
    assert one["private"]
    assert await api.user.get_predictors(name=[]) == []
    with pytest.raises(asyncfetch.ConfigurationError, match="did you mean name"):
        await api.user.get_predictors(nam="x")
    mine = await api.user.get_analyses()
    assert {one["user"] for one in mine} == {"example_user"}
    assert await api.user.get_collections() == []


async def test_own_predictors_resolve_by_name_behind_public_ones(archive, api):
    scope = {"dataset_name": "SherlockMerlin", "task_name": "MerlinMovie"}
    events = await api.predictor_events.get(predictor_name="my_ratings", **scope)
    assert {one["predictor_id"] for one in events} == {41003}
    # A name that a public predictor has too stays that one's.
    both = await api.predictor_events.get(
        predictor_name=["my_ratings", "concreteness"], **scope
    )
    public = archive.truth.predictors(dataset_id=5, name="concreteness", private=False)
    assert {one["predictor_id"] for one in both} == {41003, public[0]["id"]}


async def test_somebody_else_does_not_find_them(archive):
    async with asyncfetch.Neuroscout(base_url=archive.neuroscout) as anybody:
        with pytest.raises(asyncfetch.NotFound, match="no predictor 'my_ratings'"):
            await anybody.predictor_events.get(
                predictor_name=["speech", "my_ratings"], dataset_name="SherlockMerlin"
            )
        with pytest.raises(asyncfetch.AuthenticationError, match="needs a login"):
            await anybody.user.get_predictors()
        with pytest.raises(asyncfetch.AuthenticationError, match="wants credentials"):
            await anybody.user.get()
    assert logins(archive) == 0


async def test_a_wrong_password_is_tried_once_and_never_shown(archive):
    email, _ = archive.account
    async with asyncfetch.Neuroscout(
        email, "wr0ng-secret", base_url=archive.neuroscout
    ) as api:
        with pytest.raises(asyncfetch.AuthenticationError) as caught:
            await api.user.get()
        assert "Invalid credentials" in str(caught.value)
        assert "wr0ng-secret" not in repr(caught.value) + repr(api)
    assert logins(archive) == 1


@pytest.mark.parametrize("which", [3, 4])
async def test_a_disabled_account_says_so_and_is_not_renewed(archive, which):
    async with asyncfetch.Neuroscout(
        ACCOUNTS[which].email, PASSWORD, base_url=archive.neuroscout
    ) as api:
        with pytest.raises(asyncfetch.AuthenticationError, match="Your account has"):
            await api.user.get()
    assert logins(archive) == 1


def test_half_a_login_is_refused():
    with pytest.raises(asyncfetch.ConfigurationError, match="no password"):
        asyncfetch.Neuroscout("me@example.com")
    with pytest.raises(asyncfetch.ConfigurationError, match="no email"):
        asyncfetch.Neuroscout(password="x")


async def test_the_environment_logs_in(archive, monkeypatch):
    email, password = archive.account
    monkeypatch.setenv("NEUROSCOUT_USER", email)
    monkeypatch.setenv("NEUROSCOUT_PASSWORD", password)
    monkeypatch.setenv("ASYNCFETCH_NEUROSCOUT_URL", archive.neuroscout)
    async with asyncfetch.Neuroscout.from_env() as api:
        assert (await api.user.get())["email"] == email


@pytest.mark.parametrize(
    ("method", "target", "needed"),
    [
        ("GET", "/user", True),
        ("GET", "/user/myanalyses", True),
        ("GET", "/user/predictors?name=a", True),
        ("GET", "/user/collections", True),
        ("GET", "/user/somebody", False),
        ("GET", "/user/somebody/analyses", False),
        ("GET", "/analyses/abcde", False),
        ("GET", "/predictor-events?predictor_id=1", False),
        ("POST", "/analyses", True),
        ("PUT", "/analyses/abcde", True),
        ("POST", "/analyses/abcde/report?scale=true", False),
        ("POST", "/analyses/abcde/upload", False),
        ("POST", "/predictors/collection", True),
        ("POST", "/auth", False),
    ],
)
def test_the_token_goes_where_it_is_needed_only(method, target, needed):
    from asyncfetch._model import Request

    assert needs_user(Request(target=target, method=method)) is needed


def renewed(auth, token):
    steps = auth.renew()
    next(steps)
    with pytest.raises(StopIteration):
        steps.send(Reply(status=200, body=b'{"access_token": "%s"}' % token.encode()))


@pytest.mark.parametrize("offset", [0, -(10**7), 10**7])
def test_a_token_is_renewed_before_its_end_whatever_the_clocks_say(offset):
    now = 1000.0
    auth = TokenLogin("/auth", {"email": "a"}, scheme="JWT", clock=lambda: now)
    token = _signed({"iat": offset, "exp": offset + 604800})
    assert auth.credentials is None
    renewed(auth, token)
    assert auth.credentials.headers == {"Authorization": f"JWT {token}"}
    now += 604800 - 301
    assert auth.credentials is not None
    now += 2
    assert auth.credentials is None
    renewed(auth, token)
    assert auth.credentials is not None


@pytest.mark.parametrize(
    "token", ["", "abc", "a.b.c", _signed({}), _signed({"exp": 1, "iat": 2})]
)
def test_a_token_without_an_end_is_kept_until_it_is_refused(token):
    assert lifetime(token) == float("inf")


def test_no_login_is_no_credentials():
    assert login(None, None) is None
