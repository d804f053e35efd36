"""What the tests share: one small profile of hypothesis, an environment of no launcher, and a raw planet."""

import os

import pytest
import torch
from chain import Chain, finish, start
from hypothesis import settings
from world import write_world

# The same examples on every run, and nothing written into the working directory.
settings.register_profile("small", max_examples=20, deadline=None, derandomize=True, database=None)
settings.register_profile("large", max_examples=500, deadline=None, database=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "small"))


@pytest.fixture(autouse=True)
def environment():
    """A test leaves the environment as it found it: a training in this process enters it as a launcher would."""
    before = dict(os.environ)
    yield
    for name in set(os.environ) - set(before):
        del os.environ[name]
    os.environ.update({name: value for name, value in before.items() if os.environ.get(name) != value})


@pytest.fixture(scope="module")
def one_thread():
    """What a group of members adds in which order must not depend on what ran before."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def planet(tmp_path_factory):
    """Raw archives of three years in the providers' layouts: 2001 to train, 2002 to validate, 2003 to test."""
    folder = tmp_path_factory.mktemp("planet")
    write_world(folder, (2001, 2002, 2003))
    return folder


@pytest.fixture(scope="session")
def chain(tmp_path_factory, planet):
    """The whole chain of the jobs, run once, each a process."""
    chain = Chain(tmp_path_factory.mktemp("chain"), planet)
    for command in chain.commands:
        finish(start(command))
    return chain
