import pytest

from ferjax.errors import InputError, choose


def test_a_value_that_is_no_choice_is_refused_with_all_choices():
  choose('config.a.b', 'mean', ('mean', 'sum'))
  with pytest.raises(InputError) as error:
    choose('config.a.b', 'meen', {'mean': 0, 'sum': 1})
  assert str(error.value) == "config.a.b is 'meen'. Did you mean 'mean'? Use mean or sum"
  with pytest.raises(InputError, match=r"config.a.b is '\[\]'. Use mean or sum"):
    choose('config.a.b', [], {'mean': 0, 'sum': 1})
