"""The shell completes names of sets, sources, recipes and protocols."""

import pytest
from click.shell_completion import ShellComplete

from atomhub.cli import complete
from atomhub.cli.main import cli
from atomhub.training.protocols import PROTOCOLS


def completed(words, incomplete):
    """Return what the shell would offer, without the paths that it adds itself."""
    found = ShellComplete(cli, {}, "atomhub", "_ATOMHUB_COMPLETE").get_completions(words, incomplete)
    return [item.value for item in found if item.type == "plain"], {item.type for item in found} - {"plain"}


@pytest.mark.parametrize(
    ("words", "incomplete", "values", "paths"),
    [
        (["evaluate"], "cifar10-ipc", ["cifar10-ipc1", "cifar10-ipc10", "cifar10-ipc50"], {"dir"}),
        (["distill"], "cifar", ["cifar10", "cifar100"], {"dir"}),
        (["distill", "digits", "--recipe"], "da", ["dance", "datadam"], {"file"}),
        (["recipes"], "ch", ["channel"], {"file"}),
        (["evaluate", "digits-ipc1", "--protocol"], "d", ["dance", "datadam", "dm"], set()),
        (["evaluate", "digits-ipc1", "--labels"], "s", ["soft", "stored"], set()),
    ],
)
def test_names_are_completed(home, words, incomplete, values, paths):
    assert completed(words, incomplete) == (values, paths)


def test_so_are_names_of_the_index(home):
    (home / "indexes").mkdir(parents=True)
    place = home / "indexes" / "atomhub--index.json"
    place.write_text('{"sets": {"cifar100-ipc50": {}}}')
    assert completed(["info"], "cifar100-ipc5") == (["cifar100-ipc50"], {"dir"})
    assert completed(["pull"], "cifar100-ipc5") == (["cifar100-ipc50"], set())
    assert completed(["remove"], "") == ([], set())  # there is none to remove
    for damaged in ("[", "[" * 10**5, "3", '{"sets": ["x", 1]}'):
        place.write_text(damaged)
        assert completed(["info"], "cifar100-ipc5")[0] == []


def test_protocols_are_those_there_are():
    assert list(complete.PROTOCOLS) == list(PROTOCOLS)


def test_so_are_those_of_ones_own_sets(home, digits1):
    digits1.save(home / "sets" / "of-my-own")
    assert completed(["info"], "of-")[0] == ["of-my-own"]
