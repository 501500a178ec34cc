"""What users may rely on."""

import inspect
import pickle

import pytest

import asyncfetch
from asyncfetch import errors


def test_every_public_name_is_there():
    for name in asyncfetch.__all__:
        assert getattr(asyncfetch, name) is not None
    assert set(asyncfetch.__all__) <= set(dir(asyncfetch))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nothing_like_it"):
        asyncfetch.nothing_like_it  # noqa: B018


def all_errors():
    return [getattr(errors, name) for name in errors.__all__]


@pytest.mark.parametrize("kind", all_errors())
def test_errors_survive_pickling_with_what_they_carry(kind):
    error = kind("expected a, got b", attempts=3, key="k")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert str(again) == "expected a, got b"
    assert (again.attempts, again.key) == (3, "k")


def test_all_errors_have_one_root_and_are_public():
    for kind in all_errors():
        assert issubclass(kind, asyncfetch.AsyncfetchError)
        assert kind.__name__ in asyncfetch.__all__
        assert f"{kind.__name__} " in errors.__doc__ or kind is errors.AsyncfetchError


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        ("ConfigurationError", ValueError),
        ("NotFound", LookupError),
        ("TransportError", OSError),
        ("DecodeError", ValueError),
    ],
)
def test_errors_are_also_what_a_caller_would_expect(kind, builtin):
    assert issubclass(getattr(asyncfetch, kind), builtin)


@pytest.mark.parametrize("name", ["Neuroscout", "NeuroMorpho", "Alyx", "NeuroVault"])
def test_every_table_is_an_attribute_with_the_three_verbs(name):
    client = getattr(asyncfetch, name)()  # needs no event loop
    for description in client.descriptions:
        table = getattr(client, description.name.replace("-", "_"))
        assert table is client.table(description.name)
        for verb in ("get", "stream", "plan"):
            assert inspect.ismethod(getattr(table, verb))


def test_public_functions_are_documented():
    for name in asyncfetch.__all__:
        if not name.startswith("__"):
            assert inspect.getdoc(getattr(asyncfetch, name)), name
