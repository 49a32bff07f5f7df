import pytest

# Their asserts are to explain themselves like those of a test file.
pytest.register_assert_rewrite("tests.unit.loops", "tests.unit.towers")
