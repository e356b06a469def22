import contextlib
import json
import mmap
import pathlib
import pkgutil
import re
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ferjax import methods, models
from ferjax.assembly import build
from ferjax.benchmark import (
  bilinear,
  conv,
  evaluate,
  graphs,
  lgmp,
  losses,
  measure,
  predict,
  profiler,
  start,
  step,
  torch_process,
)
from ferjax.benchmark import input as files
from ferjax.cli import benchmark
from ferjax.errors import InputError
from ferjax.models import resnet

QUICK = measure.Bench(rounds=1, turn=0.0, only='', torch=None)


def test_sides_take_turns_and_medians_are_of_one_call():
  order = []

  def side(name, seconds):
    def turn(calls):
      order.append((name, calls))
      wall = seconds.pop(0)
      return wall, 2 * wall

    return turn

  # Each: warm-up, trial call, three turns of two and of one call.
  sides = {'a': side('a', [9.0, 0.5, 1.0, 2.0, 6.0]), 'b': side('b', [9.0, 1.0, 8.0, 5.0, 7.0])}
  timed = measure.interleave(sides, measure.Bench(3, 1.0, '', None))
  assert order == [('a', 1), ('a', 1), ('b', 1), ('b', 1)] + [('a', 2), ('b', 1)] * 3
  expected = {'median_ms': 1000.0, 'quartiles_ms': [750.0, 2000.0], 'cpu_ms': 2000.0, 'calls': 2}
  assert timed['a'] == expected | {'faults': timed['a']['faults']}
  assert timed['b']['median_ms'] == 7000.0
  assert measure.ratio({'ferjax': timed['a'], 'torch': timed['b']}, 'torch') == 7.0
  assert measure.ratio({'ferjax': timed['a']}, 'torch') is None
  order.clear()
  timed = measure.interleave({'a': side('a', [4.0, 6.0])}, measure.Bench(2, 1.0, '', None), calls=2)
  assert order == [('a', 2)] * 2 and timed['a']['median_ms'] == 2500.0


def test_page_faults_of_a_call_are_counted():
  pages = 5000

  def touches(calls):
    for _ in range(calls):
      with mmap.mmap(-1, pages * mmap.PAGESIZE) as memory:
        memory.write(bytes(len(memory)))
    return 1.0, 1.0

  sides = {'touches': touches, 'rests': lambda calls: (1.0, 1.0)}
  timed = measure.interleave(sides, measure.Bench(3, 1.0, '', None), calls=2)
  assert timed['touches']['faults'] >= pages and timed['rests']['faults'] < 100


def test_a_table_of_several_launches():
  tables = [
    {'case': ['a', 'b'], 'ratio': [1.0, None], 'n': [0.0, 3.0]},
    {'case': ['a', 'b'], 'ratio': [1.5, None], 'n': [0.0, 3.0]},
    {'case': ['a', 'b'], 'ratio': [1.25, None], 'n': [0.0, 4.0]},
  ]
  assert measure.over_launches(tables) == {
    'case': ['a', 'b'],
    'ratio': ['1.25 (1.00-1.50)', None],
    'n': [0.0, '3.00 (3.00-4.00)'],
  }


def test_several_launches_are_processes(tmp_path, capfd):
  out = tmp_path / 'out.json'
  flags = ['--rounds=1', '--turn=0', '--only=B-cubed']
  with pytest.raises(InputError, match='--launches must be at least 1'):
    benchmark.main(['losses', '--launches=0'])
  with pytest.raises(InputError, match='launch 1 failed'):
    benchmark.main(['losses', *flags, '--launches=2'])
  assert '--only=B-cubed: no such case' in capfd.readouterr().err
  flags[2] = '--only=triplets, batch 128'
  launches = benchmark.main(['losses', *flags, '--launches=2', f'--out={out}'])
  assert launches == json.loads(out.read_text()) and len(launches) == 2
  printed = capfd.readouterr().out
  assert printed.count('## losses') == 1 and '--launches=2' in printed
  assert re.search(r'[0-9.]+ \([0-9.]+-[0-9.]+\)', printed)


def test_columns_of_a_side():
  found = {'median_ms': 200.0, 'quartiles_ms': [190.0, 230.0], 'cpu_ms': 5.0}
  rows = [{'ferjax': found}, {}]
  assert measure.column(rows, 'ferjax') == [200.0, None]
  assert measure.column(rows, 'ferjax', 'cpu_ms') == [5.0, None]
  assert measure.spread(rows, 'ferjax') == ['95-115', None]


def test_markdown():
  text = measure.markdown({'case': ['a', 'long'], 'ms': [1234.5, None], 'ratio': [1.0, 0.12345]})
  assert text.splitlines() == [
    '| case   |   ms |   ratio |',
    '|:-------|-----:|--------:|',
    '| a      | 1234 |    1.00 |',
    '| long   |    - |   0.123 |',
  ]


def test_cases_are_the_convolutions_of_the_networks():
  names = [case.name for case in conv.all_cases()]
  assert len(set(names)) == len(names)
  expected = [
    '7x7/2, 64x64x3 to 64',
    '3x3, 2x2x512 to 512',
    '3x3/2, 7x7x256 to 512',
    '1x1, 28x28x256 to 64',
    '3x3, 28x28x128 to 128, 128 groups',
    'max-pool 3x3/2, 112x112x64',
  ]
  assert set(expected) <= set(names)


def test_conv_by_hand():
  window = ((3, 3), (2, 2), ((1, 1), (1, 1)))
  cases = [
    conv.Case((2, 4, 4, 4), (3, 3, 2, 6), *window, 2),
    conv.Case((2, 4, 4, 3), (3, 3, 3, 6), *window),
    conv.pool_case(4, 4, batch=2),
  ]
  grouped, stem, pool = rows = conv.run(QUICK, cases)
  # y [2, 2, 2, 6], a sum of 3 x 3 x 2 products each; value and two gradients
  assert grouped['flops'] == 3 * 2 * (2 * 2 * 2 * 6) * (3 * 3 * 2)
  assert stem['flops'] == 2 * 2 * (2 * 2 * 2 * 6) * (3 * 3 * 3)  # pictures have no gradient
  assert pool['flops'] is None
  for row in rows:
    assert row['faster_than_native'] == row['native']['median_ms'] / row['ferjax']['median_ms']
    assert row['faster_than_torch'] is None
  columns = conv.table(rows)
  assert columns['PyTorch'] == [None] * 3 and all(ms > 0 for ms in columns['ferjax'])


def test_conv_refuses_sides_that_differ(monkeypatch):
  monkeypatch.setattr(conv.conv, 'max_pool', lambda x, *args: 2 * conv.nn.max_pool(x, *args))
  with pytest.raises(AssertionError, match='max-pool 3x3/2, 4x4x4'):
    conv.run(QUICK, [conv.pool_case(4, 4, batch=2)])


def test_step_against_softmax_native_and_torch(monkeypatch, tmp_path):
  def two_blocks(*, width, output_stride, dtype, param_dtype):
    kinds = {'dtype': dtype, 'param_dtype': param_dtype}
    return resnet.ResNet(resnet.BasicBlock, (1, 1), width, output_stride, **kinds)

  monkeypatch.setattr(models, 'resnet10', two_blocks)
  monkeypatch.setattr(step, 'without_caches', contextlib.nullcontext)
  case = step.Case('resnet10', 16, 10, 'bfloat16', 'lanet', augmented=True, width=4)
  # The stem, four convolutions and a shortcut, six BatchNorms, the classifier.
  parameters = 588 + (144 + 144 + 288 + 576 + 32) + 2 * (3 * 4 + 3 * 8) + 63
  with torch_process.start(fake_python(tmp_path, torch_stub(parameters=parameters))) as torch:
    rows = step.run(QUICK._replace(torch=torch, only='lanet'), [case])
  plain, lanet = json.loads(json.dumps(rows))
  assert plain['case'] == 'resnet10, 16 px, batch 10, bfloat16, augmented, softmax'
  ours, native = plain['ferjax'], plain['native']
  assert ours['parameters'] == parameters
  assert ours['images_per_s'] == pytest.approx(10_000 / ours['median_ms'])
  assert plain['faster_than_torch'] == 3000 / ours['median_ms']
  assert plain['faster_than_native'] == native['median_ms'] / ours['median_ms']
  assert plain['compile_ratio'] == ours['compile_s'] / native['compile_s']
  assert plain['torch']['memory_mib'] == 3 and ours['memory_mib'] > 3 * 4 * parameters / 2**20
  assert plain['time_to_softmax'] == plain['flops_to_softmax'] == 1
  # The convolutions on maps of 8, 4 and 2 pixels a side: values and kernel gradients.
  flops = 10 * 2 * 2 * (588 * 8**2 + (144 + 144) * 4**2 + (288 + 576 + 32) * 2**2)
  assert flops < ours['flops'] < 2 * flops
  assert 0 < ours['share_of_peak'] < 1
  assert 'native' not in lanet and lanet['faster_than_torch'] is None
  assert 1 < lanet['flops_to_softmax'] < 5 and lanet['ferjax']['parameters'] > parameters
  assert lanet['time_to_flops'] == lanet['time_to_softmax'] / lanet['flops_to_softmax']
  assert '| resnet10, 16 px, batch 10, bfloat16, augmented, lanet ' in measure.markdown(
    step.table(rows)
  )


def test_step_gives_every_method_what_it_needs():
  for name in step.METHODS:
    case = step.Case('resnet18', 8, 2, method=name)
    method = build.make_method(step.config_of(case), step.CLASSES, step.POSES)
    batch = step.host_batch(case, method)
    assert method.needs <= set(batch) and {len(column) for column in batch.values()} == {2}


def test_steps_suit_the_device(monkeypatch):
  def shapes():
    return {(case.model, case.size, case.batch, case.precision) for case in step.all_cases()}

  assert {size for _, size, _, _ in shapes()} == {64, 112}
  shipped = {module.name for module in pkgutil.iter_modules(methods.__path__)}
  timed = {case.method for case in step.all_cases()}
  assert {step.METHODS[name]['name'] for name in timed} == shipped
  monkeypatch.setattr(step.jax, 'default_backend', lambda: 'gpu')
  assert {(name, 224, 256, 'bfloat16') for name in ('resnet18', 'resnet50')} < shapes()


def test_flops_of_a_step_as_written():
  def train_step(state, batch):
    w, image = state, batch['image']
    y = conv.conv.conv_general_dilated(image, w, (1, 1), 'SAME', dimension_numbers=conv.conv.LAYOUT)
    return step.parallel.gather(y.reshape(2, -1) @ y.reshape(2, -1).T)

  image = np.zeros((2, 1, 1, 3), np.float32)
  flops = step.written_flops(train_step, jnp.zeros((3, 3, 3, 5)), {'image': image})
  # One of nine taps reads the pixel; then products of 2 x 5 by 5 x 2.
  assert flops == 2 * (2 * 3 * 5) + 2 * (2 * 5 * 2)


def test_native_convolutions_are_lax():
  ours = step.conv.conv_general_dilated
  with step.native_convolutions():
    assert step.conv.conv_general_dilated is step.lax.conv_general_dilated
  assert step.conv.conv_general_dilated is ours


def fake_python(tmp_path, script):
  """An interpreter that always runs `script`, whatever its arguments are."""
  (tmp_path / 'script.py').write_text(script)
  path = tmp_path / 'python'
  path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{tmp_path}/script.py" 2>/dev/null\n')
  path.chmod(0o755)
  return str(path)


def test_no_module_hides_one_of_python():
  """PyTorch's side is a script: its folder comes first on the path of its imports."""
  folder = pathlib.Path(step.__file__).parent
  assert not {path.stem for path in folder.glob('*.py')} & sys.stdlib_module_names


@pytest.mark.parametrize(
  'script, reason',
  [(None, 'cannot be started'), ('import no_torch', '1'), ('print("hello")', 'Expecting value')],
)
def test_a_python_without_torch_is_refused(tmp_path, script, reason):
  python = fake_python(tmp_path, script) if script else str(tmp_path / 'none')
  with pytest.raises(InputError, match=f'--torch-python={re.escape(python)}.*{reason}.*give a'):
    benchmark.main(['conv', '--torch-python', python])


def test_a_python_that_reads_nothing_is_refused(tmp_path, monkeypatch):
  popen = subprocess.Popen

  def ended(*args, **kwargs):
    process = popen(*args, **kwargs)
    process.wait()
    return process

  monkeypatch.setattr(torch_process.subprocess, 'Popen', ended)
  python = fake_python(tmp_path, '')
  with pytest.raises(InputError, match='Broken pipe.*give a'), torch_process.start(python):
    pass


def test_most_counterparts_run_on_a_cpu_only(monkeypatch):
  cases = {
    bilinear: bilinear.CASES[:1],
    conv: [conv.pool_case(4, 4)],
    losses: losses.CASES[:1],
    predict: predict.CASES[:1],
  }
  monkeypatch.setattr(measure, 'matmul_rate', lambda bench: 1.0)
  for module in cases:
    monkeypatch.setattr(module, '_row', lambda *args: args[-1].torch)
  bench = QUICK._replace(torch='PyTorch')
  assert [module.run(bench, those) for module, those in cases.items()] == [['PyTorch']] * 4
  monkeypatch.setattr(measure.jax, 'default_backend', lambda: 'gpu')
  assert [module.run(bench, those) for module, those in cases.items()] == [[None]] * 4


def test_a_missing_folder_for_the_results_is_refused(tmp_path):
  with pytest.raises(InputError, match='there is no folder'):
    benchmark.main(['conv', f'--out={tmp_path}/none/out.json'])


def test_against_torch_uses_this_python_by_default(monkeypatch):
  asked = []

  def start(python):
    asked.append(python)
    raise InputError('stop')

  monkeypatch.setattr(benchmark.torch_process, 'start', start)
  for flags in ([], ['--against=torch'], ['--against=torch', '--torch-python=other']):
    with pytest.raises(InputError, match='stop'):
      benchmark.main(['ops', *flags])
  assert asked == [None, sys.executable, 'other']


def test_a_group_name_runs_its_benchmarks(monkeypatch, capsys):
  ran = []

  def module(path):
    def run(bench):
      ran.append(path.rpartition('.')[2])
      return [] if bench.only == 'nothing' else [{'case': 'a'}]

    return SimpleNamespace(run=run, table=lambda rows: {'case': [row['case'] for row in rows]})

  monkeypatch.setattr(benchmark.importlib, 'import_module', module)
  benchmark.main(['ops', 'start'])
  assert ran == ['conv', 'bilinear', 'lgmp', 'losses', 'start']
  ran.clear()
  assert benchmark.main(['lgmp'])['lgmp'] == [{'case': 'a'}]
  assert ran == ['lgmp'] and '## lgmp' in capsys.readouterr().out
  with pytest.raises(InputError, match='--only=nothing: no such case in evaluate'):
    benchmark.main(['evaluate', '--only=nothing'])


def test_a_mistyped_name_is_refused():
  command = [sys.executable, '-m', 'ferjax', 'benchmark', 'cov']
  result = subprocess.run(command, capture_output=True, text=True)
  assert result.returncode == 1
  assert "Did you mean 'conv'" in result.stderr and 'Traceback' not in result.stderr


TORCH = """
import json, sys
for line in sys.stdin:
  request = json.loads(line)
  answers = {
    'versions': {'torch': '2.0'},
    'conv': {'sizes': SIZES},
    'predict': {'parameters': PARAMETERS},
    'bilinear': {'sizes': SIZES},
    'search': {'found': FOUND},
    'step': {'parameters': PARAMETERS},
    'memory': {'bytes': 3 * 2**20},
    'turn': {'seconds': 3.0 * request.get('calls', 0), 'cpu_seconds': 4.0},
  }
  print(json.dumps(answers.get(request['do'], {})), flush=True)
"""


def torch_stub(sizes=(), parameters=0, found=None):
  text = TORCH.replace('SIZES', json.dumps(sizes)).replace('PARAMETERS', str(parameters))
  return text.replace('FOUND', repr(found))


def test_results_with_torch(tmp_path, monkeypatch, capsys):
  case = conv.Case((1, 2, 2, 1), (1, 1, 1, 1), (1, 1), (1, 1), ((0, 0), (0, 0)))
  x, w, dy = conv._arrays(case, case.image)
  sizes = [float(jnp.abs(array).mean()) for array in (x * w[0, 0], dy * w[0, 0], (x * dy).sum())]
  monkeypatch.setattr(conv, 'all_cases', lambda: [case])
  python = fake_python(tmp_path, torch_stub(sizes))
  out = tmp_path / 'out.json'
  flags = ['--rounds=1', '--turn=0', f'--out={out}', f'--torch-python={python}']
  results = benchmark.main(['conv', *flags])
  assert results == json.loads(out.read_text())
  assert results['versions']['torch'] == '2.0'
  (row,) = results['conv']
  assert row['torch']['median_ms'] == 3000.0
  np.testing.assert_allclose(row['faster_than_torch'], 3000 / row['ferjax']['median_ms'])
  assert '## conv' in capsys.readouterr().out


def test_lgmp_in_both_forms():
  (row,) = lgmp.run(QUICK, (lgmp.Case(6, channels=8, batch=2, landmarks=12),))
  assert row['case'] == '6x6x8, 12 landmarks, batch 2, W'
  assert row['faster_than_literal'] == row['literal']['median_ms'] / row['ferjax']['median_ms']
  assert row['literal']['memory_mb'] > row['ferjax']['memory_mb'] > 0
  assert '| 6x6x8' in measure.markdown(lgmp.table([row]))


def test_bilinear_sampling_against_others(tmp_path):
  case = bilinear.Case(2, 4, 3, 5)
  (row,) = bilinear.run(QUICK, (case,))
  ours, theirs = row['ferjax']['median_ms'], row['map_coordinates']['median_ms']
  assert row['faster_than_map_coordinates'] == theirs / ours
  columns = bilinear.table([row])
  assert columns['PyTorch'] == [None] and '| 2 of 4x4x3 at 5 points ' in measure.markdown(columns)
  with (
    torch_process.start(fake_python(tmp_path, torch_stub([1.0, 1.0, 1.0]))) as torch,
    pytest.raises(AssertionError, match='2 of 4x4x3 at 5 points'),
  ):
    bilinear.run(QUICK._replace(torch=torch), (case,))


def test_losses_of_a_whole_batch():
  cases = tuple(losses.Case(what, 16, 8, queue=32) for what in losses.WIDTHS)
  rows = losses.run(QUICK, cases)
  assert [row['case'] for row in rows] == ['LDE, batch 16', 'EL, batch 16', 'triplets, batch 16']
  assert '| EL, batch 16 ' in measure.markdown(losses.table(rows))
  embedding = jnp.array([[0.0], [1.0], [3.0]])  # hinges 0.2 + 1 - 9 and 0.2 + 1 - 4
  inputs, fixed = {'embedding': embedding}, {'label': jnp.array([0, 0, 1])}
  assert losses.triplets(inputs, fixed) == 0


def test_graphs_approximate_against_exact():
  rows = graphs.run(QUICK._replace(rows=1000))
  assert [row['case'] for row in rows] == ['au, 1000 rows', 'landmarks, 1000 rows']
  for row in rows:
    assert 0.98 < row['true_recall'] <= 1 and abs(row['recall'] - row['true_recall']) < 0.01
    assert row['memory_mb'] > 50
    assert row['faster_than_exact'] == row['exact']['median_ms'] / row['ferjax']['median_ms']
  assert '| landmarks, 1000 rows ' in measure.markdown(graphs.table(rows))
  assert graphs.action_units(50).shape == (50, 17) and graphs.landmarks(50).shape == (50, 136)


def test_metrics_of_embeddings(tmp_path):
  rows = evaluate.run(QUICK._replace(rows=300))
  classified, retrieved, clustered = rows
  assert [row['case'] for row in rows] == ['kNN, 300 rows', 'Recall@K, 300 rows', 'NMI, 300 rows']
  assert classified['faster_than_sklearn'] > 0 and 1 / 7 < classified['values']['acc'] < 1
  assert retrieved['values']['recall@1'] < retrieved['values']['recall@32'] <= 1
  assert 0 < clustered['values']['nmi'] < 1
  assert '| NMI, 300 rows ' in measure.markdown(evaluate.table(rows))
  with (
    torch_process.start(fake_python(tmp_path, torch_stub(found={'acc': 0.0}))) as torch,
    pytest.raises(AssertionError, match='kNN: torch'),
  ):
    evaluate.run(QUICK._replace(rows=300, torch=torch, only='kNN'))


def test_input_from_shuffled_files_and_to_a_step(monkeypatch, tmp_path):
  def one_block(*, width, output_stride, dtype, param_dtype):
    return resnet.ResNet(resnet.BasicBlock, (1,), width)

  monkeypatch.setattr(files.build.models, 'resnet10', one_block)
  monkeypatch.setattr(files, 'PICTURES', 40)
  monkeypatch.setattr(files, 'STEPS', 2)
  case = files.Case(24, size=16, batch=8)
  with torch_process.start(fake_python(tmp_path, torch_stub())) as torch:
    cases = (case, case._replace(model='resnet10', width=4))
    row, trained = files.run(QUICK._replace(torch=torch), cases)
  assert row['case'] == '24 px JPEG at 16 px' and row['bytes'] > 300
  assert row['ferjax']['images_per_s'] == pytest.approx(8000 / row['ferjax']['median_ms'])
  assert row['faster_than_torch'] == 3000 / row['ferjax']['median_ms']
  assert row['waiting'] is None and 0 < trained['waiting'] < 1
  assert trained['step']['images_per_s'] == pytest.approx(8000 / trained['step']['median_ms'])
  assert '| 24 px JPEG at 16 px, resnet10 |' in measure.markdown(files.table([row, trained]))


TRAINS = """
import os, sys, time
from pathlib import Path
cache, workdir = Path(os.environ['XDG_CACHE_HOME']), Path(sys.argv[2].removeprefix('--workdir='))
for part in ('data', 'xla'):
  if not (cache / 'ferjax' / part).is_dir():
    time.sleep(0.5)
    (cache / 'ferjax' / part).mkdir(parents=True)
workdir.mkdir()  # fails if the folder of the last run is still there
print('step 1/9 train', file=sys.stderr, flush=True)
time.sleep(60)
"""


def test_each_start_finds_what_the_last_one_left(monkeypatch, tmp_path):
  (tmp_path / 'trains.py').write_text(TRAINS)
  monkeypatch.setattr(start, 'TRAINS', (sys.executable, str(tmp_path / 'trains.py')))
  monkeypatch.setattr(start, 'IMPORTS', ('json', 'json.tool'))
  rows = start.run(QUICK)
  assert [row['case'] for row in rows[:2]] == ['import json', 'import json.tool']
  assert 0 < len(rows[0]['heaviest']) <= 8 and rows[0]['compared'] == 1
  imports = start.run(QUICK._replace(only='import json.'))
  assert [row['case'] for row in imports] == ['import json', 'import json.tool']
  all_new, compiles, last = (row['start']['median_ms'] for row in rows[2:])
  assert all_new > 1000 and 500 < compiles < all_new and last < compiles
  assert rows[4]['compared'] == last / all_new
  assert '| first step, programs too ' in measure.markdown(start.table(rows))


def test_a_start_that_fails_is_an_error(monkeypatch, tmp_path):
  (tmp_path / 'trains.py').write_text('raise SystemExit("no such thing")')
  monkeypatch.setattr(start, 'TRAINS', (sys.executable, str(tmp_path / 'trains.py')))
  with pytest.raises(RuntimeError, match='no such thing'):
    start.run(QUICK._replace(only='first'))


def test_prediction_from_files_and_from_memory(monkeypatch, tmp_path):
  def one_block(*, width, output_stride, **kinds):
    return resnet.ResNet(resnet.BasicBlock, (1,), width, **kinds)

  monkeypatch.setattr(models, 'resnet10', one_block)
  alone = predict.Case(8, model='resnet10', batch=4, width=4, pictures=9)
  cases = alone, alone._replace(stored=24)
  # stem 7 x 7 x 3 x 4, two 3 x 3 x 4 x 4, three BatchNorms, 4 x 7 weights and biases
  parameters = 588 + 2 * 144 + 3 * 8 + 35
  python = fake_python(tmp_path, torch_stub(parameters=parameters))
  with torch_process.start(python) as torch:
    rows = predict.run(QUICK._replace(torch=torch), cases)
    with pytest.raises(AssertionError, match='has 935 parameters, not 930'):
      predict.run(QUICK._replace(torch=torch), [alone._replace(num_classes=6)])
  for row, images in zip(rows, (4, 9), strict=True):
    assert row['ferjax']['images_per_s'] == pytest.approx(
      1000 * images / row['ferjax']['median_ms']
    )
    assert row['faster_than_torch'] == 3000 / row['ferjax']['median_ms']
  assert [row['case'][25:] for row in rows] == ['network alone', '24 px JPEG files']
  text = measure.markdown(predict.table(rows))
  assert '| resnet10, 8 px, batch 4, 24 px JPEG files |' in text and '| 100-100 ' in text


def test_costs_of_operations_beside_and_inside_each_other():
  def event(name, start, end):
    return profiler.Event(name, start * 1e6, (end - start) * 1e6)

  thread = [event('while.1', 0, 10), event('dot.4', 1, 4), event('dot.5', 4, 8)]
  other = [event('fusion', 2, 4), event('dot.4', 20, 23)]
  assert profiler.costs([thread, other], calls=2) == [
    {'name': 'dot', 'ms': 5.0, 'share': 10 / 15, 'count': 1.5},
    {'name': 'while', 'ms': 1.5, 'share': 3 / 15, 'count': 0.5},
    {'name': 'fusion', 'ms': 1.0, 'share': 2 / 15, 'count': 0.5},
  ]


def test_operations_of_a_program():
  a = jnp.ones((60, 60))
  multiply = jax.jit(lambda a: jnp.sort(a @ a, axis=0))
  multiply(a).block_until_ready()
  found = profiler.operations(
    lambda calls: [multiply(a).block_until_ready() for _ in range(calls)], 3
  )
  assert {part['name']: part['count'] for part in found}['sort'] == 1
  assert sum(part['share'] for part in found) == pytest.approx(1)
