"""Here, for pytest reads options only from the folder in which it is called. The rest is in tests/conftest.py."""


def pytest_addoption(parser):
    parser.addoption("--script", help="a copied script: run the tests of scripts, on the copy alone")
