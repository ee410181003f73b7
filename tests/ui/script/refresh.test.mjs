// The decisions of ui/script/refresh.js, without a document: run by test_script.py.

import assert from 'node:assert/strict';
import { createRequire } from 'node:module';
import { beforeEach, describe, test } from 'node:test';

createRequire(import.meta.url)('../../../ui/script/refresh.js'); // a plain script: it sets globalThis.impasto
const { RefreshState } = globalThis.impasto;

let shown;
let rendered;
let state;

beforeEach(() => {
  shown = 'artwork';
  rendered = { made: null, arrived: null };
  state = new RefreshState(
    () => shown,
    (section) => rendered[section],
  );
});

const marks = (values = {}) => ({
  artwork: 'a1',
  captions: 'c1',
  train: 't1',
  made: 'm1',
  arrived: 'r1',
  ...values,
});

// One poll whose due sections are all refreshed.
function poll(values, project = 'ink') {
  const due = state.update(marks(values), project);
  due.forEach((section) => state.stale.delete(section));
  return due;
}

describe('a section of one tab', () => {
  test('is refreshed once for each mark while its tab is shown', () => {
    assert.deepEqual(poll(), ['artwork', 'made']);
    assert.deepEqual(poll(), []);
    assert.deepEqual(poll({ artwork: 'a2' }), ['artwork']);
    assert.deepEqual(poll({ artwork: 'a2' }), []);
  });

  test('stays stale while its tab is hidden and is refreshed by the poll after the tab is shown', () => {
    poll();
    assert.deepEqual(poll({ train: 't2' }), []);
    assert.ok(state.stale.has('train'));
    shown = 'train';
    assert.deepEqual(poll({ train: 't2' }), ['train']);
  });

  test('stays stale where its button does not exist yet', () => {
    assert.deepEqual(state.update(marks(), 'ink'), ['artwork', 'made']);
    assert.deepEqual(state.update(marks(), 'ink'), ['artwork', 'made']);
  });
});

describe('a shared section', () => {
  test('counts each mark once while the tab that renders it is hidden', () => {
    rendered.made = 'm0';
    assert.ok(poll().includes('made'));
    assert.ok(!poll().includes('made'));
    assert.ok(poll({ made: 'm2' }).includes('made'));
  });

  test('is refreshed until its own HTML has the mark of the server', () => {
    shown = 'library';
    rendered.made = 'm0';
    assert.ok(poll().includes('made'));
    assert.ok(poll().includes('made'), 'the first refresh got lost');
    rendered.made = 'm1';
    assert.ok(!poll().includes('made'));
  });

  test('is not refreshed for a project that its tab has not rendered', () => {
    assert.ok(!poll().includes('arrived'));
    rendered.arrived = 'r0';
    assert.ok(poll().includes('arrived'), 'the mark has not been counted before');
  });
});

test('the shown tab is refreshed at every tenth poll, whatever its mark', () => {
  poll();
  const due = Array.from({ length: 20 }, () => poll());
  assert.deepEqual(
    due.map((sections) => sections.length),
    Array.from({ length: 20 }, (_, n) => Number((n + 2) % 10 === 0)),
  );
});

describe('a trigger', () => {
  test('gets a new value at once where its tab is shown', () => {
    assert.notEqual(state.trigger('artwork', 'artwork-1', 'old'), 'old');
    assert.notEqual(
      state.trigger('artwork', 'artwork-1', 'old'),
      state.trigger('artwork', 'artwork-1', 'old'),
    );
    assert.ok(!state.hasPending('artwork'));
  });

  test('keeps its value in a hidden tab and gets one new value when that tab is shown', () => {
    assert.equal(state.trigger('train', 'train-1', 'old'), 'old');
    assert.equal(state.trigger('train', 'train-1', 'old'), 'old');
    assert.ok(state.hasPending('train') && !state.hasPending('captions'));
    assert.notEqual(state.flush('train-1', 'old'), 'old');
    assert.equal(state.flush('train-1', 'new'), 'new');
    assert.ok(!state.hasPending('train'));
  });

  test('is flushed independently of the other triggers of its tab', () => {
    state.trigger('train', 'train-1', 'old');
    state.trigger('train', 'train-2', 'old');
    state.flush('train-1', 'old');
    assert.ok(state.hasPending('train'));
  });
});
